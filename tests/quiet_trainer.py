"""The trainer of tests that fit, or run a job, without the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from oneshot_lit.methods.job import JobTrainer


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


class Stopped(Exception):
    """A job was stopped by its test, as a kill would stop it."""


def run_job(
    module: Any, data: Any, root: Path, *, stop_after: int | None = None, **options: Any
) -> JobTrainer:
    """Run a job on the CPU, or let it end, in the midst of a run, behind so many steps.

    The trainer is returned, so that what the module knows of it lasts.
    """
    trainer = JobTrainer(accelerator="cpu", devices=1, default_root_dir=str(root), **options)
    if stop_after is not None:
        take, taken = module.step, []

        def step() -> bool:
            if len(taken) == stop_after:
                raise Stopped
            taken.append(1)
            return bool(take())

        module.step = step
    module.run(trainer, data, torch.initial_seed() % 2**32)
    return trainer
