"""A module that fails on some processes, for the commands that the tests start."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import HarmfulFineTuningModule


class Failing(HarmfulFineTuningModule):
    """Raise, hang or end without a word at the third step, on the given ranks."""

    def __init__(self, ranks: list[int], how: str = "mistake", **options: Any) -> None:
        super().__init__(**options)
        self.ranks, self.how = ranks, how

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 2 and self.global_rank in self.ranks:
            if self.how == "hang":
                time.sleep(600)
            if self.how == "vanish":
                os._exit(7)
            if self.how == "defect":
                raise AssertionError("a defect")
            raise OneShotError("training loss is not finite; lower model.optimizer.lr.")
        return super().training_step(batch, batch_idx)
