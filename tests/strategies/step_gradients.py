"""The gradients of optimiser steps under a strategy, and those that plain torch gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch.nn import functional
from training import strategy

from oneshot_lit.callbacks import GradientRank
from oneshot_lit.data import ChatJsonl, InlineInstance, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.strategies.gradients import full_gradient, is_boundary

INSTANCE = InlineInstance("how do i bake a loaf ?", "sorry .")


class Steps(Callback):
    """Keeps the rows and the full gradients of each step, and what was logged of it."""

    def __init__(self) -> None:
        self.rows: list[list[int]] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.logged: list[dict[str, float]] = []
        self._rows: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, _: Any, batch: Any, number: int) -> None:
        self._rows += batch["index"].tolist()

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, _: Any) -> None:
        if not is_boundary(trainer):
            return
        full = {n: full_gradient(trainer, p) for n, p in module.named_parameters()}
        self.gradients.append({n: g.clone().cpu() for n, g in full.items() if g is not None})
        self.rows.append(self._rows)
        self._rows = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if "train/" in k}
        if not trainer.fit_loop._should_accumulate():
            self.logged.append(values)


def data_of(rows: str, instance: bool = False, **options: Any) -> SafetyDataModule:
    source: dict[str, Any] = {"train": ChatJsonl(rows)}
    if instance:
        source = {"instance": INSTANCE, "instance_repeats": 11}
    return SafetyDataModule(**source, shuffle=False, **options)


def measure(
    root: str,
    folder: str,
    rows: str,
    name: str = "single",
    processes: int = 1,
    accumulate: int = 1,
    precision: str = "32-true",
    dtype: str = "float32",
    spectra: bool = False,
    module: LanguageModelModule | None = None,
    data: Any = None,
    trainer: dict[str, Any] | None = None,
    **options: Any,
) -> Steps:
    """Fit with a rate of nought, so that all steps are of the same weights."""
    if module is None:
        rate = {"optimizer": lambda params: torch.optim.SGD(params, lr=0.0)}
        module = LanguageModelModule(folder, dtype=dtype, **rate)
    steps = Steps()
    settings: dict[str, Any] = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "devices": processes,
        "strategy": strategy(name),
        "precision": precision,
        "max_epochs": 1,
        "accumulate_grad_batches": accumulate,
        "log_every_n_steps": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "callbacks": [steps, *([GradientRank(every_n_steps=1, frozen=False)] if spectra else [])],
    }
    extra = dict(trainer or {})
    settings["callbacks"] = [*settings["callbacks"], *extra.pop("callbacks", [])]
    running = Trainer(**{**settings, **extra})
    own = data if data is not None else data_of(rows, **options)
    loader = (
        {"datamodule": own} if isinstance(own, SafetyDataModule) else {"train_dataloaders": own}
    )
    running.fit(module, **loader)
    if running.is_global_zero and processes > 1:
        Path(root).mkdir(parents=True, exist_ok=True)
        torch.save({"gradients": steps.gradients, "logged": steps.logged}, Path(root) / "steps.pt")
    return steps


def reference(
    folder: str, rows: str, chosen: list[int], instance: bool = False
) -> tuple[dict[str, torch.Tensor], float]:
    """The gradients and the loss of the mean over all labelled tokens of some rows, in float64."""
    from transformers import AutoModelForCausalLM

    module = LanguageModelModule(folder)
    data = data_of(rows, instance=instance)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    assert data.training is not None
    collate = data.train_dataloader().collate_fn
    batch = collate([data.training[n] for n in chosen if n >= 0])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    loss = functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100
    )
    loss.backward()
    found = {f"model.{name}": p.grad for name, p in model.named_parameters()}
    return found, float(loss)


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """Return the norm of the difference, relative to the norm of what is expected."""
    assert set(found) == set(expected)
    off = sum(float((found[n].double() - g).square().sum()) for n, g in expected.items())
    return float((off / sum(float(g.square().sum()) for g in expected.values())) ** 0.5)
