"""Fits of methods on the tiny model and the batches of golden data, by Lightning's own trainer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from quiet_trainer import quiet_trainer

GOLDEN = Path(__file__).with_name("golden")


def golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the facts of a folder."""
    folder = GOLDEN / name
    return load_file(folder / "data.safetensors"), json.loads((folder / "data.json").read_text())


def part(data: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin so, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in data.items() if n.startswith(prefix)}


def tiny_llama(weights: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> Any:
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=len({n.split(".")[2] for n in weights if ".layers." in n}),
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).to(dtype)
    model.load_state_dict({name: weight.to(dtype) for name, weight in weights.items()})
    return model


def batch_of(ids: Tensor, labels: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    return {
        "input_ids": ids.long(),
        "labels": labels.long(),
        "attention_mask": torch.ones_like(ids).long() if mask is None else mask.long(),
        "index": torch.arange(len(ids)),
    }


class Steps(Callback):
    """Keeps the gradients of the last step, as the optimiser got them, and what was logged."""

    def __init__(self) -> None:
        self.gradients: dict[str, Tensor] = {}
        self.logged: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        for name, parameter in pl_module.model.named_parameters():
            if parameter.grad is not None:
                self.gradients[name] = parameter.grad.clone()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        # The module's own hook comes after that of callbacks.
        if trainer.global_step > 0:
            self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self.logged.append({k: float(v) for k, v in trainer.callback_metrics.items()})


class Batches(LightningDataModule):
    """Given batches, made when the trainer is there."""

    def __init__(self, make: Callable[[Any], list[dict[str, Any]]]) -> None:
        super().__init__()
        self.make = make

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.make(self.trainer.lightning_module), batch_size=None)  # type: ignore[arg-type]


def fit(
    module: Any,
    model: Any,
    batches: list[dict[str, Any]] | Callable[[Any], list[dict[str, Any]]],
    root: Path,
    **options: Any,
) -> Steps:
    """Train a module on a model and batches, one epoch if nothing else is said."""
    steps = Steps()
    module.model = model.train()
    make = batches if callable(batches) else lambda _: batches
    settings = {"max_epochs": 1, "log_every_n_steps": 1, "num_sanity_val_steps": 0, **options}
    quiet_trainer(root, steps, **settings).fit(module, Batches(make))
    return steps


def require_close(
    got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float, of: str = ""
) -> None:
    assert set(got) >= set(wanted)
    for name, tensor in wanted.items():
        own = got[name].detach().to(tensor.dtype)
        torch.testing.assert_close(own, tensor, atol=tolerance, rtol=0, msg=f"{of} {name}")
