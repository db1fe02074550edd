"""Change gradients between the backward pass and the optimiser, under any strategy.

What a process sees of a parameter is its own part: all of it under DDP, a shard under FSDP2 and
ZeRO. Together with a sum over all parts that is enough for projections and norms of each tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from oneshot_lit.strategies.gradients import _engine, _zero_shard, loss_scale

# Sums a tensor of scalars over all parts, in all processes; the identity where nothing is in parts.
Reduce = Callable[[Tensor], Tensor]
# Name -> this process's part of the gradient, flat, to change in place.
Edit = Callable[[Mapping[str, Tensor], Reduce], None]


@torch.no_grad()
def edit_gradients(trainer: Trainer, named: Mapping[str, nn.Parameter], edit: Edit) -> None:
    """Let `edit` change the gradients in place; all processes call this together.

    They are the mean over the processes, before clipping and without the loss scale.

    Args:
        trainer: The running trainer, between a step's last backward pass and its optimiser step.
        named: Trained parameters; the same ones in all processes.
        edit: Gets name -> this process's part, flat, of those that have a gradient; and a function
            that sums a tensor over all parts. An inner product of two gradients is ``reduce((a *
            b).sum())``.
    """
    scale = loss_scale(trainer) if _engine(trainer) is not None else 1.0
    parts: dict[str, Tensor] = {}
    written: dict[str, Callable[[Tensor], None]] = {}
    in_parts = False
    for name, parameter in named.items():
        part, write, shared = _part(trainer, parameter)
        in_parts = in_parts or shared
        if part is None:
            continue
        parts[name] = part / scale if scale != 1.0 else part
        written[name] = write
    whole = trainer.world_size > 1 and in_parts

    def reduce(values: Tensor) -> Tensor:
        if not whole:
            return values
        summed = values.detach().clone()
        distributed.all_reduce(summed)
        return summed

    edit(parts, reduce)
    for name, part in parts.items():
        written[name](part * scale if scale != 1.0 else part)


def own_parts(named: Mapping[str, nn.Parameter], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's part, flat, of tensors that have the parameters' shapes.

    It matches the part of a gradient that `edit` gets, entry by entry.

    Args:
        named: Parameters, after the strategy has taken the model.
        whole: Name -> the whole tensor, the same in all processes, such as a direction or a mask.
    """
    return {name: _own_part(named[name], tensor) for name, tensor in whole.items()}


def _part(trainer: Trainer, parameter: Any) -> tuple[Tensor | None, Any, bool]:
    """Return the part of a gradient, how to write it back, and whether others hold other parts."""
    gradient = parameter.grad
    if isinstance(gradient, DTensor):
        local = gradient.to_local()
        return local.flatten(), lambda part: local.copy_(part.view_as(local)), True
    if gradient is not None:
        own: Tensor = gradient
        return own.flatten(), lambda part: own.copy_(part.view_as(own)), False
    if _engine(trainer) is None or not parameter.requires_grad:
        return None, None, False
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

        whole = safe_get_local_grad(parameter).flatten().clone()
        own = _zero_shard(parameter)[: whole.numel()]  # type: ignore[index]

        def write(part: Tensor) -> None:
            # The last shards are padded.
            whole[: part.numel()] = part
            safe_set_local_grad(parameter, whole)

        return own.clone(), write, True
    shard = _zero_shard(parameter)
    if shard is None:
        # This process holds no part of the parameter, but others do.
        return parameter.new_zeros(0), lambda part: None, True
    return shard.clone(), lambda part: shard.copy_(part), True


def _own_part(parameter: Any, whole: Tensor) -> Tensor:
    """Return the part of a whole tensor that belongs to this process's part of a parameter."""
    if isinstance(parameter, DTensor):
        from torch.distributed.tensor import distribute_tensor

        placed = distribute_tensor(
            whole.to(parameter.device),
            parameter.device_mesh,
            parameter.placements,
            src_data_rank=None,
        )
        return placed.to_local().flatten()
    flat = whole.flatten().to(parameter.device)
    if hasattr(parameter, "ds_id"):
        rank = distributed.get_rank(parameter.ds_process_group)
        size = parameter.ds_tensor.numel()
        return flat[rank * size : (rank + 1) * size]
    fragment: Any = getattr(parameter, "_hp_mapping", "whole")
    if fragment == "whole":
        return flat
    if fragment is None:
        return flat[:0]
    address = fragment.lp_fragment_address
    return flat[address.start : address.start + address.numel]
