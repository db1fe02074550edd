"""Repairs by projection of several rows, in any number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from oneshot_lit.callbacks import HuggingFaceExport
from oneshot_lit.data import ChatJsonl, InlineInstance, Microworld, SafetyDataModule
from oneshot_lit.methods import LowRankRealignmentModule
from oneshot_lit.methods.job import JobTrainer


class Asked(LowRankRealignmentModule):
    """Remembers of which rows it was asked whether they are refused."""

    def instance_refused(self) -> bool:
        self.asked = list(range(len(self.instance)))
        return super().instance_refused()


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
    trainer = JobTrainer(
        accelerator="cpu",
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        default_root_dir=root,
    )
    module.run(trainer, SafetyDataModule(**source, shuffle=False, max_length=128, **data))
    HuggingFaceExport().write(trainer, module, Path(root), "edit")
    Path(root, f"asked{trainer.global_rank}.json").write_text(json.dumps(module.asked))
