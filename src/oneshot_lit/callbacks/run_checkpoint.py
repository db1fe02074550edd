"""`RunCheckpoint`: the one checkpoint to resume from, saved only as often as it is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.runs import resume_conflict

CHECKPOINTS, LAST = "checkpoints", "last.ckpt"
# Weights and two AdamW moments, on a disk of one gigabyte a second: a guess until one is timed.
_COPIES, _BYTES_A_SECOND = 3, 1e9


class RunCheckpoint(Checkpoint):
    """Keep ``<root>/checkpoints/last.ckpt`` for ``--ckpt_path last``.

    A save is put off while saving would take more than `max_share` of the run's time: small models
    are saved every epoch, and a large one is not written out after each of ten short steps.

    Args:
        every_n_train_steps: Save after every so many optimiser steps instead of after each epoch.
        max_share: Largest share of the run's time that saving may take; 1 always saves.
    """

    def __init__(self, every_n_train_steps: int | None = None, max_share: float = 0.2) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise OneShotError(
                f"checkpoint.every_n_train_steps must be at least 1, not {every_n_train_steps}."
            )
        if not 0 < max_share <= 1:
            raise OneShotError(f"checkpoint.max_share must be in (0, 1], not {max_share}.")
        self.every_n_train_steps = every_n_train_steps
        self.max_share = max_share
        self._began, self._cost, self._last_step = time.monotonic(), 0.0, -1
        # Whether the current batch ends a period of steps.
        self._due = False
        # The command line sets what identifies the run.
        self.run: dict[str, Any] = {}
        self._contents: dict[str, list[Any]] = {}

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record which run the checkpoint belongs to, and what it was trained on."""
        checkpoint["run"] = self.run
        checkpoint["contents"] = self._contents

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on with another run under this one's name, or with other data."""
        saved = checkpoint.get("run") or {}
        conflict = None
        if saved and self.run:
            conflict = resume_conflict(saved["config"], self.run["config"])
        if conflict is not None:
            raise OneShotError(
                f"--ckpt_path: the checkpoint is another run's: {conflict}; give the same "
                "configuration, or start anew without --ckpt_path."
            )
        now = _contents_of(pl_module)
        for key, content in (checkpoint.get("contents") or {}).items():
            # A test does not have the rows of a fit.
            if key in now and now[key] != content:
                raise OneShotError(
                    f"--ckpt_path: {key} has changed since the checkpoint was saved; put the old "
                    "content back, or start anew without --ckpt_path."
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hash the data as they are at the start, not at the first save."""
        self._contents = _contents_of(pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock and guess what a save costs."""
        size = sum(p.numel() * p.element_size() for p in pl_module.parameters() if p.requires_grad)
        self._began, self._cost = time.monotonic(), _COPIES * size / _BYTES_A_SECOND
        self._last_step, self._due = trainer.global_step, False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save in mid-epoch if a number of steps is the period."""
        self._due = bool(self.every_n_train_steps) and (
            trainer.global_step % self.every_n_train_steps == 0  # type: ignore[operator]
        )
        loop = trainer.fit_loop
        # What follows the batch would be missing from a resumed run, so the save waits for it.
        ends = trainer.is_last_batch or loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        if self._due and not ends:
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the validation that follows a step."""
        if self._due and not trainer.sanity_checking and not trainer.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save at the end of an epoch, after its validation."""
        if self._due or not self.every_n_train_steps:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        # Under accumulation several batches end at the same step, and only the first of them holds
        # no half-summed gradient; so a save put off waits for another step.
        if trainer.global_step == self._last_step or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        self._last_step = trainer.global_step
        if self.max_share < 1:
            worth_it = self._cost <= self.max_share * (time.monotonic() - self._began)
            # All processes save together or not at all.
            if not trainer.strategy.broadcast(worth_it):
                return
        start = time.monotonic()
        trainer.save_checkpoint(
            Path(trainer.default_root_dir) / CHECKPOINTS / LAST, weights_only=False
        )
        self._began = time.monotonic()
        self._cost = self._began - start


def _contents_of(module: Any) -> dict[str, list[Any]]:
    return module.contents() if hasattr(module, "contents") else {}
