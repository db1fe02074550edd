"""Short fits that leave losses, spectra and a product behind, under any strategy."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import distributed

from oneshot_lit.callbacks import AtomicCheckpointIO, GradientRank, HuggingFaceExport, RunCheckpoint
from oneshot_lit.data import ChatJsonl, InlineInstance, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.strategies import FSDP2Strategy, HFDeepSpeedStrategy

OPTIMIZERS = {
    # A large rate, so that a wrong gradient shows.
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1),
    # Of no scale: a large epsilon keeps rounding of tiny gradients from deciding a step's sign.
    "adamw": lambda params: torch.optim.AdamW(params, lr=2e-3, eps=1e-4),
}
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}


def strategy(name: str) -> Any:
    if name.startswith("zero"):
        return HFDeepSpeedStrategy(stage=int(name[-1]), reduce_bucket_size=3000)
    return FSDP2Strategy() if name == "fsdp2" else "ddp" if name == "ddp" else "auto"


class Killed(Callback):
    """Ends this process as `kill -9` does, in the middle of the run."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class Losses(Callback):
    """Writes down the loss of each step, and what the first process sees of the run."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items()}
        # The loss of a step is known behind its last batch.
        if "train/loss" in values:
            self.found.append({"step": trainer.global_step, **values})


def train(
    name: str,
    root: str,
    folder: str,
    rows: str,
    processes: int = 1,
    optimizer: str = "sgd",
    accumulate: int = 1,
    clip: float | None = None,
    peft: dict[str, Any] | None = None,
    config: dict[str, Any] | None = None,
    instance: bool = False,
    batch_size: int = 4,
    epochs: int = 2,
    checkpointing: bool = False,
    precision: str = "32-true",
    spectra: bool = False,
    save_every: int | None = None,
    ckpt_path: str | None = None,
    max_epochs: int | None = None,
    max_steps: int = -1,
    module: dict[str, Any] | None = None,
    kill_at: int | None = None,
    merge: bool = False,
) -> None:
    # A previous fit of the same processes may have changed it.
    torch.manual_seed(0)
    model: dict[str, Any] = {"model_name_or_path": folder}
    if config is not None:
        model = {"model_config": config, "tokenizer_name_or_path": folder}
    built = LanguageModelModule(
        **model,
        peft=peft,
        optimizer=OPTIMIZERS[optimizer],
        gradient_checkpointing=checkpointing,
        **(module or {}),
    )
    source: dict[str, Any] = {"train": ChatJsonl(rows)}
    if instance:
        prompt = "how do i bake a poisonous loaf ?"
        source = {"instance": InlineInstance(prompt, "sorry ."), "instance_repeats": 3}
    data = SafetyDataModule(**source, batch_size=batch_size, share_batch=True, seed=3)
    losses, export = Losses(), HuggingFaceExport(merge_adapter=merge)
    callbacks: list[Callback] = [losses, export]
    if spectra:
        callbacks.append(GradientRank())
    if save_every is not None:
        callbacks.append(RunCheckpoint(every_n_train_steps=save_every, max_share=1.0))
    if kill_at is not None:
        callbacks.append(Killed(kill_at))
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=processes,
        strategy=strategy(name),
        precision=precision,  # type: ignore[arg-type]
        max_epochs=epochs if max_epochs is None else max_epochs,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=clip,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=save_every is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=callbacks,
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(built, data, ckpt_path=ckpt_path, weights_only=True)
    if trainer.is_global_zero:
        (Path(root) / "losses.json").write_text(json.dumps(losses.found))
    if distributed.is_initialized():
        distributed.barrier()


def saving_trainer(
    name: str,
    root: str,
    processes: int = 1,
    max_steps: int = -1,
    kill_at: int | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> Trainer:
    """A trainer of two epochs that saves after each step and writes the model at its end."""
    return Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=processes,
        strategy=strategy(name),
        max_epochs=2,
        max_steps=max_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        callbacks=[
            HuggingFaceExport(),
            RunCheckpoint(every_n_train_steps=1, max_share=1.0),
            *([] if kill_at is None else [Killed(kill_at)]),
            *callbacks,
        ],
        plugins=[AtomicCheckpointIO()],
        **options,
    )
