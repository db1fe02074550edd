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
from torch.nn import functional

from oneshot_lit.strategies.gradients import engine_of, loss_scale, own_gradient

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
    # Without DeepSpeed, the precision plugin has taken the scale out already.
    scale = 1.0 if engine_of(trainer) is None else loss_scale(trainer)
    views: dict[str, Tensor] = {}
    sharded = False
    for name, parameter in named.items():
        view, in_parts = own_gradient(trainer, parameter)
        sharded = sharded or in_parts
        if view is not None:
            views[name] = view
    parts = {name: view if scale == 1.0 else view / scale for name, view in views.items()}

    def reduce(values: Tensor) -> Tensor:
        summed = values.detach().clone()
        if sharded and trainer.world_size > 1:
            distributed.all_reduce(summed)
        return summed

    edit(parts, reduce)
    for name, part in parts.items():
        _write(named[name], views[name], part if scale == 1.0 else part * scale)


def own_parts(named: Mapping[str, nn.Parameter], whole: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return this process's part, flat, of tensors that have the parameters' shapes.

    It matches the part of a gradient that `edit` gets, entry by entry.

    Args:
        named: Parameters, after the strategy has taken the model.
        whole: Name -> the whole tensor, the same in all processes, such as a direction or a mask.
    """
    return {name: _own_part(named[name], tensor) for name, tensor in whole.items()}


def _write(parameter: Any, view: Tensor, part: Tensor) -> None:
    if parameter.grad is None and hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_set_local_grad

        # The last shards are padded.
        size = parameter.ds_tensor.numel()
        safe_set_local_grad(parameter, functional.pad(part, (0, size - part.numel())))
    elif part is not view:
        view.copy_(part)


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
