"""Defences at training time, and their fits under a strategy."""

from __future__ import annotations

from typing import Any

import torch
from training import saving_trainer

from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import SPF, HarmfulFineTuningModule, Lisa, SPFReleased, Vaccine

# Label -> class, arguments and whether it has rows of its own.
DEFENCES: dict[str, tuple[Any, dict[str, Any], str | None]] = {
    "plain": (HarmfulFineTuningModule, {}, None),
    "spf": (SPF, {"safety_batch": 3}, "safety"),
    "spf global": (SPF, {"granularity": "global"}, "safety"),
    "spf rank": (SPF, {"subspace": "rank_k", "rank_k": 2, "safety_batch": 2}, "safety"),
    "spf space": (SPF, {"subspace": "left_space", "rank_k": 2, "safety_batch": 2}, "safety"),
    "spf released": (SPFReleased, {"safety_batch": 2}, "safety"),
    "vaccine": (Vaccine, {"rho": 0.5, "norm_scope": "global"}, None),
    "vaccine rank": (Vaccine, {"rho": 0.5}, None),
    "lisa": (Lisa, {"alignment_step": 1, "finetune_step": 2}, "alignment"),
    "lisa never": (
        Lisa,
        {"alignment_step": 1, "finetune_step": 2, "consume_user_batches": "never"},
        "alignment",
    ),
}


def fit(
    label: str,
    name: str,
    root: str,
    folder: str,
    rows: str,
    side: str,
    processes: int = 1,
    accumulate: int = 1,
    clip: float | None = None,
    peft: dict[str, Any] | None = None,
    dropout: float | None = None,
    max_steps: int = -1,
    ckpt_path: str | None = None,
    dtype: str = "float32",
) -> None:
    """Train two epochs of three steps each, saving after each step; write the product."""
    torch.manual_seed(0)
    kind, options, stream = DEFENCES[label]
    if peft is not None and dropout is not None:
        peft = {**peft, "lora_dropout": dropout}
    module = kind(
        folder,
        peft=peft,
        dtype=dtype,
        optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.5),
        **options,
    )
    trainer = saving_trainer(
        name,
        root,
        processes,
        max_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        log_every_n_steps=1,
    )
    data = SafetyDataModule(
        ChatJsonl(rows),
        batch_size=4 // accumulate,
        share_batch=True,
        seed=3,
        side=None if stream is None else {stream: ChatJsonl(side)},
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
