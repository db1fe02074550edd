"""`DataReport`: how many rows a command used, and how many it left out."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from oneshot_lit.io.files import write_json_atomically


class DataReport(Callback):
    """Write the counts of every data set to ``<root>/data.json``: no text of any row.

    The file maps a command (fit, validate, test, predict) to its sets, ``train``, ``anchors`` and
    ``<split>/<set>``, and each of them to its rows, tokens, longest row, digest of the contents and
    the rows left out, by reason.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sets of a command, beside those of the commands before it."""
        command = str(trainer.state.fn.value)  # type: ignore[union-attr]
        report = getattr(trainer.datamodule, "report", None)  # type: ignore[attr-defined]
        if not report or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        target = Path(trainer.default_root_dir) / "data.json"
        earlier = {}
        with suppress(OSError, ValueError):
            earlier = json.loads(target.read_text(encoding="utf-8"))
        write_json_atomically(target, earlier | {command: report})

    # Once more in a fit: by then the model may have answered rows itself.
    on_train_start = on_test_start = on_predict_start = on_fit_start

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sets of the command `validate`."""
        if trainer.state.fn == "validate":
            self.on_fit_start(trainer, pl_module)
