"""`ProgressLines`: how far a run is, in plain lines for a log file."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ProgressLines(Callback):
    """Print a line to standard error every so often, from the first process.

    A line of training has the step and the last one, the loss, the learning rate, the time so far
    and the time left at this speed. A line of prompts has the batches.

    Args:
        seconds: Least time between two lines.
        first: The first line of training comes after this many steps, or after `seconds`.
    """

    def __init__(self, seconds: float = 10.0, first: int = 3) -> None:
        self.seconds, self.first = seconds, first
        self._printed = self._began = time.monotonic()
        self._first_step = self._last_step = self._batches = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._began = self._printed = time.monotonic()
        self._first_step = self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Print a line if it is time for one."""
        early = trainer.global_step == self._first_step + self.first
        if trainer.global_step != self._last_step and (early or self._due()):
            self._print_step(trainer, pl_module, outputs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last line."""
        if trainer.global_step != self._last_step:
            self._print_step(trainer, pl_module, None)

    def _print_step(self, trainer: Trainer, module: LightningModule, outputs: Any) -> None:
        self._last_step = step = trainer.global_step
        total = trainer.estimated_stepping_batches
        parts = [f"step {step}" + (f"/{total}" if 0 < total < math.inf else "")]
        loss = outputs.get("loss") if isinstance(outputs, dict) else None
        if loss is None or trainer.world_size > 1 or trainer.accumulate_grad_batches > 1:
            # Only what was logged is the loss of the whole step.
            loss = trainer.callback_metrics.get("train/loss")
        if loss is not None:
            parts.append(f"loss {float(loss):.4g}")
        if module.automatic_optimization and trainer.optimizers:
            parts.append(f"lr {trainer.optimizers[0].param_groups[0]['lr']:.3g}")
        self._print(trainer, parts, self._began, step - self._first_step, total - self._first_step)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock of these prompts."""
        self._prompts_began, self._batches = time.monotonic(), 0

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
        """Print a line if it is time for one."""
        self._batches += 1
        if not self._due():
            return
        stage: Any = trainer.state.stage
        kind = "sanity_val" if trainer.sanity_checking else stage.dataloader_prefix
        batches = getattr(trainer, f"num_{kind}_batches")
        total = sum(batches) if isinstance(batches, list) else batches
        parts = [f"{stage.value}: batch {self._batches}/{total}"]
        self._print(trainer, parts, self._prompts_began, self._batches, total)

    on_test_batch_end = on_predict_batch_end = on_validation_batch_end

    def _due(self) -> bool:
        return time.monotonic() - self._printed >= self.seconds

    def _print(
        self, trainer: Trainer, parts: list[str], began: float, done: int, total: float
    ) -> None:
        self._printed = time.monotonic()
        spent = self._printed - began
        parts.append(f"elapsed {timedelta(seconds=round(spent))}")
        if done < total < math.inf:
            parts.append(f"left {timedelta(seconds=round(spent / done * (total - done)))}")
        if trainer.is_global_zero:
            print("  ".join(parts), file=sys.stderr, flush=True)
