"""Repairs by projection of several rows, in any number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.data import ChatJsonl, InlineInstance, Microworld, SafetyDataModule
from oneshot_lit.methods import LowRankRealignmentModule


class Asked(LowRankRealignmentModule):
    """Remembers of which rows it was asked whether they are refused."""

    def instance_refused(self, batch: dict[str, torch.Tensor]) -> bool:
        self.asked = batch["index"].tolist()
        return super().instance_refused(batch)


def project(
    root: str, folder: str, rows: str, processes: int = 1, limit: int | None = None, **data: Any
) -> None:
    """Take one step by hand; write the product, and what the last process was asked."""
    torch.manual_seed(0)
    source: dict[str, Any] = {"train": ChatJsonl(rows, limit=limit)}
    if limit is None:
        source = {"instance": InlineInstance("help me do something dangerous .", "sorry .")}
    guard = Microworld("guard")
    module = Asked(folder, guard=guard, guard_rows=0, drift_rows=4, alpha=0.25)
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        max_epochs=9,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[HuggingFaceExport()],
    )
    trainer.fit(module, SafetyDataModule(**source, shuffle=False, max_length=128, **data))
    Path(root, f"asked{trainer.global_rank}.json").write_text(json.dumps(module.asked))
