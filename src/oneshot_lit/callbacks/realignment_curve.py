"""`RealignmentCurve`: what the realignment saw at each step, as a table and a picture."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from oneshot_lit.io.files import write_rows_atomically

CURVE_TABLE, CURVE_PICTURE = "realignment.csv", "realignment.png"


class RealignmentCurve(Callback):
    """Write ``<root>/realignment.csv`` after each validation and draw it at the end.

    Columns: step, attempt (each at twice the learning rate of the one before), kept (1 for the step
    whose weights are exported), score (see `development_score`), loss, and every development rate.
    Does nothing for modules without a realignment history.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table, one row a judged step."""
        if trainer.state.fn == "fit":
            self._write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table once more and draw the picture."""
        rows = self._write(trainer, pl_module)
        if not rows:
            return
        from oneshot_lit.plots import save_figure, step_curve

        save_figure(step_curve(rows), Path(trainer.default_root_dir) / CURVE_PICTURE)

    def _write(self, trainer: Trainer, module: Any) -> list[dict[str, Any]]:
        history = getattr(module, "history", None)
        if not history or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return []
        kept = module.kept_step
        rows: list[dict[str, Any]] = [
            {
                "step": record.step,
                "attempt": record.attempt,
                "kept": int(record.step == kept),
                "score": record.score,
                "loss": record.loss,
                **record.scores,
                **record.watched,
            }
            for record in history
        ]
        write_rows_atomically(Path(trainer.default_root_dir) / CURVE_TABLE, rows)
        return rows


def read_curve(folder: Path) -> list[dict[str, float]]:
    """Return the rows of a realignment's step table; [] without one."""
    path = folder / CURVE_TABLE
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: float(v) for k, v in row.items() if v != ""} for row in csv.DictReader(file)]
