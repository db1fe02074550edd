"""`StepSearchCurve`: what a low-rank repair tried, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from oneshot_lit.io.files import write_rows_atomically

SEARCH_TABLE, SEARCH_PICTURE = "step_search.csv", "step_search.png"


class StepSearchCurve(Callback):
    """Write ``<root>/step_search.csv`` and draw it when a low-rank repair has ended well.

    Columns: pass, alpha, drift (nats), refused (1, 0, or empty where it was not asked) and kept (1
    for the step that was taken), in the order in which they were tried. Does nothing for other
    modules.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table and the picture."""
        tried = getattr(pl_module, "tried", None)
        if not tried or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        rows: list[dict[str, Any]] = [
            {
                "pass": each.pass_number,
                "alpha": each.alpha,
                "drift": each.drift,
                "refused": None if each.refused is None else int(each.refused),
                "kept": int(each.kept),
            }
            for each in tried
        ]
        root = Path(trainer.default_root_dir)
        write_rows_atomically(root / SEARCH_TABLE, rows)
        from oneshot_lit.plots import save_figure, search_curve

        save_figure(search_curve(rows, float(pl_module.max_drift)), root / SEARCH_PICTURE)  # type: ignore[arg-type]
