"""The trainer of tests that fit without the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer


def quiet_trainer(root: Path, callback: Callback, **options: Any) -> Trainer:
    """On the CPU, with one callback; nothing else is written or printed."""
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        **options,
    )
