"""`CalmProgressBar`: Lightning's progress bar, redrawn ten times a second at most."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class CalmProgressBar(RichProgressBar):
    """Redraw at most every `seconds` during training, and after the last step of an epoch.

    Lightning draws the whole table after each step, which takes longer than a small model's step.

    Args:
        seconds: Least time between two drawings during training.
    """

    def __init__(self, seconds: float = 0.1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.seconds, self._drawn = seconds, 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draw, or leave it to a later step."""
        now = time.monotonic()
        if now - self._drawn < self.seconds and batch_idx + 1 < self.total_train_batches:
            return
        self._drawn = now
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
