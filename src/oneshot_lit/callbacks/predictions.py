"""`PredictionWriter`: the answers of `predict` at ``<root>/predictions.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info

from oneshot_lit.callbacks.metrics_writer import gathered_rows, json_lines
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.predictions import file_digest
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.io.locking import results_locked
from oneshot_lit.io.metrics_file import mark_outdated
from oneshot_lit.io.runs import PRODUCTS, record_run


class PredictionWriter(BasePredictionWriter):
    """Write one JSON row for each prompt: its set, messages, reference and the model's output.

    Running `predict` is the explicit request to see outputs, so they stand there in full; reports
    and logs never hold them. The file is for its owner alone, whatever the umask. Rows come in the
    order of each set's source.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="epoch")
        # The command line sets what identifies the run.
        self.run: dict[str, Any] = {}

    def write_on_epoch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        predictions: Sequence[Any],
        batch_indices: Sequence[Any],
    ) -> None:
        """Gather the rows of all processes and write the file from the first one."""
        rows = gathered_rows(trainer, _rows(predictions), trainer.predict_dataloaders)
        if not trainer.is_global_zero:
            return
        target = Path(trainer.default_root_dir) / PRODUCTS["predict"]
        write_text_atomically(target, json_lines(rows), private=True)
        # A test may end at the same moment.
        with results_locked(target.parent):
            record_run(target.parent, "predict", self.run)
        rank_zero_info(f"{len(rows)} answers written to {target}")
        with suppress(OneShotError):
            # The next test or judge reports a file of scores that cannot be read.
            for name in mark_outdated(target.parent, file_digest(target)):
                rank_zero_info(f"{name}: its scores are of earlier answers; judge again")


def _rows(predictions: Any) -> list[dict[str, Any]]:
    """Return the rows of all batches, of one loader or of several; a batch may have none."""
    if isinstance(predictions, dict):
        return [predictions]
    return [row for part in predictions for row in _rows(part)]
