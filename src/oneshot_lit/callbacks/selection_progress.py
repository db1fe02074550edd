"""`SelectionProgress`: what a selection saw so far, as a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from oneshot_lit.io.files import write_rows_atomically
from oneshot_lit.methods.select.base import SelectionModule


class SelectionProgress(Callback):
    """Write a selection's table while it runs and draw its picture when it has ended.

    The bilevel selection has ``<root>/selection.csv`` and ``selection.png``: one row an outer step,
    with ``step``, ``gamma``, ``f``, ``g``, ``v``, ``gap`` (nats a token; see `PenaltyRecord`),
    ``entropy`` (nats), and ``row`` (in the pool, from 1), ``id`` and ``weight`` of the candidate
    with the largest weight. Brute force has ``candidates.csv`` and ``candidates.png``: one row a
    candidate, with ``row``, ``id``, ``category``, ``score`` (0 is best) and every development rate;
    enumeration has ``candidates.csv`` with ``f`` and its ``harmful`` term (nats a token) instead.
    Does nothing for other modules.
    """

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the table with the step that was just taken."""
        _write(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the table with what was just measured."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            _write(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the picture."""
        if (module := _drawn(trainer, pl_module)) is None:
            return
        if (figure := module.progress_figure()) is not None:
            from oneshot_lit.plots import save_figure

            root = Path(trainer.default_root_dir)
            save_figure(figure, root / f"{module.progress_name}.png")


def _drawn(trainer: Trainer, module: LightningModule) -> SelectionModule | None:
    """Return the module where this process writes for it."""
    if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
        return None
    return module if isinstance(module, SelectionModule) else None


def _write(trainer: Trainer, pl_module: LightningModule) -> None:
    module = _drawn(trainer, pl_module)
    if module is not None and (rows := module.progress_rows()):
        root = Path(trainer.default_root_dir)
        write_rows_atomically(root / f"{module.progress_name}.csv", rows)
