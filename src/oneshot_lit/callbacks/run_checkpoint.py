"""`RunCheckpoint`: the one checkpoint to resume from, saved only as often as it is worth."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from oneshot_lit.data.digests import rows_digest
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
        every_n_epochs: Save after every so many epochs; 1 when no period is given.
        every_n_train_steps: Save after every so many optimiser steps instead.
        max_share: Largest share of the run's time that saving may take; 1 always saves.
    """

    def __init__(
        self,
        every_n_epochs: int | None = None,
        every_n_train_steps: int | None = None,
        max_share: float = 0.2,
    ) -> None:
        if every_n_epochs is not None and every_n_train_steps is not None:
            raise OneShotError(
                "checkpoint: give every_n_epochs or every_n_train_steps, not both; set the other "
                "to null."
            )
        for name, value in {"epochs": every_n_epochs, "train_steps": every_n_train_steps}.items():
            if value is not None and value < 1:
                raise OneShotError(f"checkpoint.every_n_{name} must be at least 1, not {value}.")
        if not 0 < max_share <= 1:
            raise OneShotError(f"checkpoint.max_share must be in (0, 1], not {max_share}.")
        self.every_n_train_steps = every_n_train_steps
        self.every_n_epochs = 1 if every_n_epochs is None else every_n_epochs
        self.max_share = max_share
        self._began, self._cost, self._last_step = time.monotonic(), 0.0, -1
        # Whether the current batch ends a period of steps.
        self._due = False
        # The command line sets what identifies the run.
        self.run: dict[str, Any] = {}
        self._contents: dict[str, list[Any]] | None = None

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Record which run the checkpoint belongs to, and what it was trained on."""
        checkpoint["run"] = self.run
        checkpoint["contents"] = self._contents_of(trainer)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on with another run under this one's name, or with other data."""
        saved = checkpoint.get("run") or {}
        if saved and self.run:
            self._require_same_run(saved)
        # Checkpoints of earlier versions do not say what they were trained on.
        before, now = checkpoint.get("contents") or {}, self._contents_of(trainer)
        for key in before:
            if key in now and before[key] != now[key]:
                rows = [
                    f"{count} row{'s' if count != 1 else ''}"
                    for count, _ in (before[key], now[key])
                ]
                raise OneShotError(
                    f"--ckpt_path: {key} has changed since the checkpoint was saved ({rows[0]} "
                    f"then, {rows[1]} now); put the old content back, or start anew without "
                    "--ckpt_path."
                )

    def _contents_of(self, trainer: Trainer) -> dict[str, list[Any]]:
        """Return the number of rows that decide the model, and a hash of them, by key."""
        if self._contents is None:
            module: Any = trainer.lightning_module
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            contents = data.contents() if hasattr(data, "contents") else {}
            further = module.further_rows() if hasattr(module, "further_rows") else {}
            contents |= {key: [len(rows), rows_digest(rows)] for key, rows in further.items()}
            self._contents = contents
        return self._contents

    def _require_same_run(self, saved: dict[str, Any]) -> None:
        difference = resume_conflict(saved["config"], self.run["config"])
        if difference is not None:
            raise OneShotError(
                f"--ckpt_path: the checkpoint is another run's: {difference}; give the same "
                "configuration, or start anew without --ckpt_path."
            )

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the data of an earlier fit."""
        self._contents = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hash the data as they are at the start, not at the first save."""
        self._contents_of(trainer)

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
        epochs = trainer.current_epoch + 1
        if self._due if self.every_n_train_steps else epochs % self.every_n_epochs == 0:
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
