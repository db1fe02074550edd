"""All bytes that are there at once while a model of several processes is trained in one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from oneshot_lit.models.loss import next_token_loss


@contextmanager
def mesh_of(processes: int) -> Iterator[DeviceMesh]:
    """The mesh of the first of several processes; the others never answer, nor need to."""
    distributed.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield init_device_mesh("cpu", (processes,), mesh_dim_names=("data_parallel",))
    finally:
        distributed.destroy_process_group()


def autocast(precision: str) -> Any:
    """As Lightning's trainer computes."""
    mixed = precision == "bf16-mixed"
    return MixedPrecision("bf16-mixed", "cpu").forward_context() if mixed else nullcontext()


class Live(TorchDispatchMode):
    """Sums up, after each operation, all storages that it has seen and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, StorageWeakRef] = {}
        self.peak = 0

    def see(self, *values: Any) -> None:
        for value in tree_leaves(values):
            own = value.to_local() if isinstance(value, DTensor) else value
            if isinstance(own, torch.Tensor):
                storage = own.untyped_storage()
                self.seen[storage._cdata] = StorageWeakRef(storage)

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = operation(*args, **(kwargs or {}))
        self.see(args, kwargs, result)
        self.seen = {key: ref for key, ref in self.seen.items() if not ref.expired()}
        there = [torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for ref in self.seen.values()]
        self.peak = max(self.peak, sum(storage.nbytes() for storage in there))
        return result


def peak_of_a_step(model: Any, ids: torch.Tensor, precision: str) -> int:
    """The most of the second forward and backward pass; gradients go between, as in a trainer."""
    live = Live()
    # Between the passes the model has whole weights in place of those that keep the gradients.
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    for watched in (nullcontext(), live):
        live.see([(p, p.grad) for p in model.parameters()])
        with watched:
            with autocast(precision):
                logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
                loss = next_token_loss(logits.logits, ids)
            del logits
            optimizer.zero_grad()
            loss.backward()
            del loss
    return live.peak
