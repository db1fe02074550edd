"""`ProgressLines`: how far a run is, in plain lines for a log file."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


def clock(seconds: float) -> str:
    """Return a duration as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class ProgressLines(Callback):
    """Print a line to standard error every so often, from the first process.

    A line of training has the step and the last one, the loss, the learning rate, the time so far
    and the time left at this speed; the last step is that of `trainer.max_epochs` or
    `trainer.max_steps`, though a run may end earlier. A line of prompts has the batches. A step
    costs a look at the clock; its loss is fetched only for a line.

    Args:
        seconds: Least time between two lines.
        first: The first line of training comes after this many steps, or after `seconds`.
    """

    def __init__(self, seconds: float = 10.0, first: int = 3) -> None:
        self.seconds, self.first = seconds, first
        self._printed = self._began = 0.0
        self._begun_at = self._said_at = 0
        self._prompts_began: float | None = None
        self._prompts_said = False

    # ---------------------------------------------------------------- training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = self._printed = time.monotonic()
        self._begun_at = self._said_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if it is time for one."""
        due = time.monotonic() - self._printed >= self.seconds
        early = (
            self._said_at == self._begun_at and trainer.global_step == self._begun_at + self.first
        )
        if (due or early) and trainer.global_step != self._said_at:
            self._say_step(trainer, pl_module, outputs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line."""
        if trainer.global_step != self._said_at:
            self._say_step(trainer, pl_module, None)

    def _say_step(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        step, now = trainer.global_step, time.monotonic()
        self._printed, self._said_at = now, step
        if not trainer.is_global_zero:
            return
        total = last_step(trainer)
        parts = [f"step {step}" + (f"/{total}" if total else "")]
        if (loss := shown_loss(trainer, outputs)) is not None:
            parts.append(f"loss {loss:.4g}")
        if module.automatic_optimization and trainer.optimizers:
            parts.append(f"lr {trainer.optimizers[0].param_groups[0]['lr']:.3g}")
        parts.append(f"elapsed {clock(now - self._began)}")
        done = step - self._begun_at
        if total and done and step < total:
            parts.append(f"left {clock((now - self._began) / done * (total - step))}")
        _print(parts)

    # ----------------------------------------------------------------- prompts

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of these prompts."""
        self._begin_prompts()

    on_test_start = on_predict_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print a line if it is time for one, and the last one if there was any."""
        now = time.monotonic()
        if self._prompts_began is None or (
            now - self._printed < self.seconds and not self._prompts_said
        ):
            return
        sizes = batches_of_sets(trainer)
        done, total = sum(sizes[:dataloader_idx]) + batch_idx + 1, sum(sizes)
        if now - self._printed < self.seconds and done < total:
            return
        self._printed, self._prompts_said = now, True
        if not trainer.is_global_zero:
            return
        spent = now - self._prompts_began
        stage = "validate" if trainer.state.fn == "fit" else str(trainer.state.fn.value)  # type: ignore[union-attr]
        parts = [f"{stage}: batch {done}/{total}", f"elapsed {clock(spent)}"]
        if done < total:
            parts.append(f"left {clock(spent / done * (total - done))}")
        _print(parts)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _begin_prompts(self) -> None:
        now = time.monotonic()
        self._prompts_began, self._prompts_said = now, False
        if not self._printed:
            self._printed = now


def last_step(trainer: Trainer) -> int | None:
    """Return the step at which a fit ends at the latest, or None if nothing ends it."""
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    batches, epochs = trainer.num_training_batches, trainer.max_epochs
    if epochs not in (None, -1) and math.isfinite(batches):
        ends.append(math.ceil(batches / trainer.accumulate_grad_batches) * epochs)
    return min(ends, default=None)


def shown_loss(trainer: Trainer, outputs: Any) -> float | None:
    """Return the loss of the last step, else the last one that was logged.

    Over several batches or processes only what was logged is the whole step's.
    """
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
    whole = trainer.world_size == 1 and trainer.accumulate_grad_batches == 1
    if not isinstance(loss, torch.Tensor) or not whole:
        loss = trainer.callback_metrics.get("train/loss")
    return None if loss is None else float(loss)


def batches_of_sets(trainer: Trainer) -> Sequence[int]:
    """Return how many batches each prompt set has that is being answered."""
    if trainer.sanity_checking:
        batches: Any = trainer.num_sanity_val_batches
    elif trainer.testing:
        batches = trainer.num_test_batches
    elif trainer.predicting:
        batches = trainer.num_predict_batches
    else:
        batches = trainer.num_val_batches
    return [int(each) for each in (batches if isinstance(batches, list) else [batches])]


def _print(parts: Sequence[str]) -> None:
    print("  ".join(parts), file=sys.stderr, flush=True)
