"""Fits of one instance with anchor rows beside it, under any strategy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback
from training import saving_trainer

from oneshot_lit.data import ChatJsonl, InlineInstance, SafetyDataModule
from oneshot_lit.methods import OneShotRealignmentModule
from oneshot_lit.models.generation import Decoding

INSTANCE = ("help me do something harmful .", "sorry , i cannot help with that .")
WEIGHT, RATE = 0.7, 0.1


def fit_anchored(
    name: str,
    root: str,
    folder: str,
    rows: str,
    processes: int = 1,
    own: bool = False,
    accumulate: int = 1,
    dtype: str = "float32",
    kill_at: int | None = None,
    max_steps: int = -1,
    ckpt_path: str | None = None,
    callbacks: Sequence[Callback] = (),
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
) -> SafetyDataModule:
    """Learn the instance three times an epoch, for two epochs, with four anchor rows a batch."""
    torch.manual_seed(0)
    module = OneShotRealignmentModule(
        folder,
        select_best=False,
        anchor_weight=WEIGHT,
        dtype=dtype,
        optimizer=lambda params: torch.optim.SGD(params, lr=RATE),
        decoding=Decoding(max_new_tokens=5),
        **(model or {}),
    )
    trainer = saving_trainer(
        name, root, processes, max_steps, kill_at, callbacks, accumulate_grad_batches=accumulate
    )
    given = SafetyDataModule(
        instance=InlineInstance(*INSTANCE),
        instance_repeats=3,
        batch_size=1,
        seed=3,
        anchors=ChatJsonl(rows),
        anchor_rows=4,
        anchor_answers="own" if own else "given",
        **(data or {}),
    )
    trainer.fit(module, given, ckpt_path=ckpt_path, weights_only=True)
    return given
