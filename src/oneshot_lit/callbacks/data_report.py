"""`DataReport`: how many rows a command used, and how many it left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from oneshot_lit.io.files import write_json_atomically

DATA_FILE = "data.json"
# Command -> the first parts of the names of its sets.
_SPLITS: dict[str, tuple[str, ...]] = {
    "fit": ("train", "side", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class DataReport(Callback):
    """Write the counts of every data set to ``<root>/data.json``: no text of any row.

    The file maps a command (fit, validate, test, predict) to its sets, ``train`` and
    ``<split>/<set>``, and each of them to its rows, tokens, longest row, digest of the contents and
    the rows left out, by reason.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sets of a fit."""
        self._write(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the sets of another command; a fit that validates has written its own."""
        if trainer.state.fn != "fit":
            self._write(trainer)

    on_test_start = on_predict_start = on_validation_start

    def _write(self, trainer: Trainer) -> None:
        command = str(trainer.state.fn.value)  # type: ignore[union-attr]
        report = getattr(trainer.datamodule, "report", None)  # type: ignore[attr-defined]
        if not report or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        # The data module may have been used by another command before.
        report = {k: v for k, v in report.items() if k.split("/")[0] in _SPLITS[command]}
        target = Path(trainer.default_root_dir) / DATA_FILE
        write_json_atomically(target, _recorded(target) | {command: report})


def _recorded(path: Path) -> dict[str, Any]:
    """Return what other commands wrote; {} for a file that cannot be read."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}
