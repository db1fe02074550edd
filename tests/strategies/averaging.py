"""Fits whose weights are averaged, under a strategy."""

from __future__ import annotations

import torch
from training import saving_trainer

from oneshot_lit.callbacks import ExponentialMovingAverage
from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule


def fit(
    name: str,
    root: str,
    folder: str,
    rows: str,
    processes: int = 1,
    feedback_every: int | None = None,
    max_steps: int = -1,
    ckpt_path: str | None = None,
    accumulate: int = 1,
) -> None:
    """Train two epochs of three steps each, saving after each step; write the average."""
    torch.manual_seed(0)
    module = LanguageModelModule(
        folder, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.5)
    )
    average = ExponentialMovingAverage(0.75, feedback_every=feedback_every)
    trainer = saving_trainer(
        name, root, processes, max_steps, None, [average], accumulate_grad_batches=accumulate
    )
    data = SafetyDataModule(ChatJsonl(rows), batch_size=4 // accumulate, share_batch=True, seed=3)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
