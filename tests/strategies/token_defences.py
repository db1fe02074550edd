"""Fits of the defences that weigh tokens, and the annotations that they read."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from training import saving_trainer

from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import (
    ConstrainedSFT,
    Guard,
    LogProbabilities,
    StarDSS,
    StarScores,
    TokenScores,
    Toss,
    TossTokens,
)
from oneshot_lit.methods.annotate.guards import Beginning
from oneshot_lit.methods.job import JobTrainer

LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}


class HashGuard(Guard):
    """Gives each text a number that depends on it alone."""

    def load(self, device: torch.device) -> None:
        """Load nothing."""

    def encoded(self, beginning: Beginning) -> list[int]:
        return [0] * len(beginning.text)

    def scores(self, rows: list[list[int]], beginnings: Sequence[Beginning]) -> Tensor:
        return torch.tensor([zlib.crc32(each.text.encode()) % 1000 / 999 for each in beginnings])


def annotate(kind: Any, root: Path, folder: str, rows: str, **keys: Any) -> Path:
    """Annotate rows in this process."""
    with isolate_rng(include_cuda=False):
        job = kind(folder, **keys)
        trainer = JobTrainer(
            accelerator="cpu", devices=1, default_root_dir=str(root), enable_progress_bar=False
        )
        job.run(trainer, SafetyDataModule(ChatJsonl(rows)))
    return root


def annotated(root: Path, folder: str, rows: str, other: str) -> dict[str, str]:
    """Return the folders of all annotations that the cases below need."""
    guards = [HashGuard(model_name_or_path=folder)]
    made = {
        "star": annotate(StarScores, root / "star", folder, rows, guards=guards, chunk_words=2),
        "log": annotate(LogProbabilities, root / "log", folder, rows),
        "toss": annotate(TokenScores, root / "toss", folder, rows, harmful=other, utility=folder),
    }
    return {name: str(path) for name, path in made.items()}


# Name -> class and keys; a value in capitals is the folder of these annotations.
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "constrained": (ConstrainedSFT, {}),
    "constrained, side": (ConstrainedSFT, {}),
    "constrained, adapter": (ConstrainedSFT, {"peft": LORA}),
    "constrained, file": (ConstrainedSFT, {"reference_file": "LOG"}),
    "star": (StarDSS, {"annotations": "STAR"}),
    "star, file": (StarDSS, {"annotations": "STAR", "reference_file": "LOG", "kl_estimator": "k3"}),
    "star, rejection": (StarDSS, {"annotations": "STAR", "variant": "rejection"}),
    "star, KL only": (StarDSS, {"variant": "kl_only"}),
    "toss, paper": (Toss, {}),
    "toss, release": (Toss, {"reduction": "example_mean"}),
}


def fit(
    label: str,
    name: str,
    root: str,
    folder: str,
    rows: str,
    files: dict[str, str],
    processes: int = 1,
    max_steps: int = -1,
    ckpt_path: str | None = None,
    accumulate: int = 1,
) -> None:
    """Train two epochs of three steps each, saving after each step; write the product."""
    torch.manual_seed(0)
    kind, keys = CASES[label]
    keys = {k: files[v.lower()] if str(v).isupper() else v for k, v in keys.items()}
    module = kind(folder, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.5), **keys)
    trainer = saving_trainer(name, root, processes, max_steps, accumulate_grad_batches=accumulate)
    side = {"anchors": ChatJsonl(rows, skip=4)} if "side" in label else None
    transforms = [TossTokens(files["toss"], discard=0.3)] if kind is Toss else []
    data = SafetyDataModule(
        ChatJsonl(rows),
        batch_size=4 // accumulate,
        share_batch=True,
        seed=3,
        side=side,
        transforms=transforms,
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
