"""What a real step keeps, for the two processes of a test and for the test itself."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from fits import PEFT, strategy
from lightning.pytorch import Callback, Trainer
from torch.distributed.tensor import DTensor

from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule


def storages(tensors: Iterable[Any]) -> dict[int, int]:
    """Address -> bytes of what holds the tensors, each once; of sharded ones, the own part."""
    found = {}
    for tensor in tensors:
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        storage = own.untyped_storage()
        if storage.nbytes():
            found[storage.data_ptr()] = storage.nbytes()
    return found


def total(mine: dict[int, int], *others: dict[int, int]) -> int:
    return sum(size for address, size in mine.items() if not any(address in o for o in others))


def zero_optimizer(trainer: Trainer) -> Any:
    """DeepSpeed's optimiser around the one of the module, or None."""
    model: Any = trainer.model
    return model.optimizer if hasattr(model, "is_gradient_accumulation_boundary") else None


class Measure(Callback):
    """Sums up the storages of one process: gradients before the step, all else after it."""

    def __init__(self) -> None:
        self.found: dict[str, int] = {}

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        zero = zero_optimizer(trainer)
        if zero is None:
            gradients = storages(p.grad for p in pl_module.parameters() if p.grad is not None)
        elif hasattr(zero, "grad_partitions_flat_buffer"):
            gradients = storages([zero.grad_partitions_flat_buffer])
        else:
            gradients = storages(t for some in zero.averaged_gradients.values() for t in some)
        self.found["gradients"] = total(gradients)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        parameters = list(pl_module.parameters())
        weights = storages(getattr(p, "ds_tensor", p.data) for p in parameters)
        zero = zero_optimizer(trainer)
        inner = trainer.optimizers[0] if zero is None else zero.optimizer
        # ZeRO-3 shows them to its inner optimiser only while that steps.
        copies = getattr(zero, "fp32_partitioned_groups_flat", None)
        masters = storages(copies or [p for g in inner.param_groups for p in g["params"]])
        state = storages(t for kept in inner.state.values() for n, t in kept.items() if n != "step")
        self.found["weights"] = total(weights)
        self.found["optimizer"] = total(state)
        self.found["master"] = 0 if zero is None else total(masters, weights)
        self.found["whole"] = total(storages(p.data for p in parameters), weights)
        if hasattr(zero, "grad_partitions_flat_buffer"):
            self.found["buckets"] = total(storages(b.buffer for b in zero.ipg_buckets.values()))


def measure(
    name: str,
    folder: str,
    rows: str,
    root: str,
    precision: str = "32-true",
    peft: bool = False,
    processes: int = 2,
) -> None:
    """Take one AdamW step and write what each process holds to `root`."""
    torch.manual_seed(0)
    module = LanguageModelModule(
        folder, peft=PEFT if peft else None, optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3)
    )
    measuring = Measure()
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=processes,
        strategy=strategy(name),
        precision=precision,
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[measuring],
        use_distributed_sampler=False,
    )
    trainer.fit(module, SafetyDataModule(train=ChatJsonl(rows), batch_size=2, shuffle=False))
    Path(root).mkdir(exist_ok=True, parents=True)
    (Path(root) / f"found{trainer.global_rank}").write_text(json.dumps(measuring.found))
