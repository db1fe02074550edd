"""Realignments, tests and predictions under any strategy, on the micro-world."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from training import Killed, strategy

from oneshot_lit.callbacks import (
    AtomicCheckpointIO,
    HuggingFaceExport,
    PredictionWriter,
    RunCheckpoint,
)
from oneshot_lit.data import InlineInstance, Microworld, PromptSet, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule, OneShotRealignmentModule
from oneshot_lit.models.generation import Decoding


def _trainer(name: str, root: str, processes: int, callbacks: list[Callback]) -> Trainer:
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=processes,
        strategy=strategy(name),
        max_epochs=12,
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=any(isinstance(c, RunCheckpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )


def realign(
    name: str,
    root: str,
    folder: str,
    processes: int = 1,
    lr: float = 5e-4,
    attempts: int = 1,
    peft: dict[str, Any] | None = None,
    precision: str = "32-true",
    kill_at: int | None = None,
    ckpt_path: str | None = None,
) -> None:
    """Repair a broken model, choosing the step; write what was seen and the product."""
    torch.manual_seed(0)
    module = OneShotRealignmentModule(
        folder,
        peft=peft,
        optimizer=lambda params: torch.optim.AdamW(params, lr=lr, eps=1e-5),
        decoding=Decoding(max_new_tokens=12),
        patience=2,
        attempts=attempts,
        attempt_steps=4,
    )
    sets = {
        # Uneven numbers: the processes have different numbers of prompts, and of batches.
        "harmful": PromptSet(Microworld("harmful_dev", size=17), "harmful"),
        "benign": PromptSet(Microworld("benign_dev", size=15), "benign"),
    }
    pool = Microworld("pool").load()
    data = SafetyDataModule(
        instance=InlineInstance(pool[0].prompt_text, pool[0].response_text or ""),
        val_sets=sets,
        batch_size=1,
        eval_batch_size=8,
    )
    callbacks: list[Callback] = [
        HuggingFaceExport(),
        RunCheckpoint(every_n_train_steps=1, max_share=1.0),
    ]
    if kill_at is not None:
        callbacks.append(Killed(kill_at))
    trainer = _trainer(name, root, processes, callbacks)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    if trainer.is_global_zero:
        history = [asdict(record) for record in module.history]
        content = {"history": history, "kept": module.kept_step}
        (Path(root) / "seen.json").write_text(json.dumps(content))


def evaluate(name: str, root: str, folder: str, processes: int = 1, size: int = 21) -> None:
    """Test and predict; write the scores and the counts."""
    module = LanguageModelModule(folder, decoding=Decoding(max_new_tokens=12))
    sets = {
        "harmful": PromptSet(Microworld("harmful_dev", size=size), "harmful"),
        "one": PromptSet(Microworld("benign_dev", size=1), "benign"),
        "sql": PromptSet(Microworld("sql_dev", size=5), "task"),
    }
    data = SafetyDataModule(test_sets=sets, eval_batch_size=4)
    trainer = _trainer(name, root, processes, [PredictionWriter()])
    trainer.test(module, data, verbose=False)
    if trainer.is_global_zero:
        Path(root).mkdir(parents=True, exist_ok=True)
        content = {"scores": module.scores, "counts": module.counts["samples"]}
        (Path(root) / "scores.json").write_text(json.dumps(content))
    module = LanguageModelModule(folder, decoding=Decoding(max_new_tokens=12))
    _trainer(name, root, processes, [PredictionWriter()]).predict(
        module, data, return_predictions=False
    )
