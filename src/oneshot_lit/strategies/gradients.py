"""The gradient of a parameter under any strategy, sharded or not.

Gradients are there between a backward pass and the optimiser step. The functions that read them
talk to the other processes, so all processes must call them in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor


def is_boundary(trainer: Trainer) -> bool:
    """Whether the optimiser steps after this batch; DeepSpeed is asked to step on every one."""
    engine = engine_of(trainer)
    return engine is None or bool(engine.is_gradient_accumulation_boundary())


def loss_scale(trainer: Trainer) -> float:
    """Return the factor by which 16-bit mixed precision scales the loss before the backward."""
    engine = engine_of(trainer)
    if engine is not None:
        return float(getattr(engine.optimizer, "loss_scale", 1.0))
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the whole shape of a parameter that may be sharded; under ZeRO-3 `shape` is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def full_gradient(trainer: Trainer, parameter: nn.Parameter) -> Tensor | None:
    """Return the gradient that the optimiser gets, on every process, or None if there is none.

    It is the mean over the processes, before clipping and without the loss scale. Under DeepSpeed
    an unused weight may have a gradient of zeros.

    Args:
        trainer: The running trainer.
        parameter: A parameter of its module, sharded or not.

    Returns:
        A tensor of `full_shape`; do not write to it.
    """
    if not parameter.requires_grad:
        return None
    if engine_of(trainer) is None:
        gradient = parameter.grad
        return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    from deepspeed.utils import safe_get_full_grad

    gradient = safe_get_full_grad(parameter)
    scale = loss_scale(trainer)
    return gradient if gradient is None or scale == 1.0 else gradient / scale


def own_gradient(trainer: Trainer, parameter: Any) -> tuple[Tensor | None, bool]:
    """Return this process's part of a gradient, and whether other processes hold other parts.

    Args:
        trainer: The running trainer.
        parameter: A parameter of its module.

    Returns:
        The part, flat, under DeepSpeed with the loss scale: all of it under DDP, a shard under
        FSDP2 and ZeRO, empty if only others hold any; None if there is no gradient. Except under
        ZeRO-3 writing to it changes the gradient.
    """
    gradient = parameter.grad
    if isinstance(gradient, DTensor):
        return gradient.to_local().view(-1), True
    if gradient is not None:
        return gradient.view(-1), False
    if engine_of(trainer) is None or not parameter.requires_grad:
        return None, False
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_grad

        shard = safe_get_local_grad(parameter).flatten()
        start = distributed.get_rank(parameter.ds_process_group) * shard.numel()
        # The last shards are padded.
        return shard[: max(0, parameter.ds_numel - start)], True
    fragment: Any = getattr(parameter, "_hp_mapping", None)
    if fragment is None:
        return parameter.new_zeros(0), True
    shard = fragment.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
    if shard.numel() == parameter.numel():
        address = fragment.lp_fragment_address
        shard = shard.narrow(0, address.start, address.numel)
    return shard, True


def gradient_norms(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the Frobenius norms of the full gradients, from the shards and one small message.

    Args:
        trainer: The running trainer.
        parameters: Parameters of its module; the same ones on all processes.

    Returns:
        (parameters,), float64 on the CPU; NaN where there is no gradient.
    """
    scale = loss_scale(trainer) if engine_of(trainer) is not None else 1.0
    sums = torch.zeros(2, len(parameters), dtype=torch.float64)
    for n, parameter in enumerate(parameters):
        part, in_parts = own_gradient(trainer, parameter)
        if part is not None:
            square = (float(torch.linalg.vector_norm(part.float())) / scale) ** 2
            sums[0, n] = square if in_parts else square / trainer.world_size
            sums[1, n] = 1.0
    if trainer.world_size > 1:
        sums = sums.to(trainer.strategy.root_device)
        distributed.all_reduce(sums)
        sums = sums.cpu()
    norms = sums[0].sqrt()
    norms[sums[1] == 0] = torch.nan
    return norms


def total_norm(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> Tensor | None:
    """Return the norm of all gradients together, or None if there is none.

    Args:
        trainer: The running trainer.
        parameters: Parameters of its module; the same ones on all processes.

    Returns:
        A scalar.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if engine_of(trainer) is None and not any(isinstance(g, DTensor) for g in gradients):
        return torch.nn.utils.get_total_norm(gradients) if gradients else None
    norms = gradient_norms(trainer, parameters)
    known = norms[~norms.isnan()]
    return torch.linalg.vector_norm(known).float() if known.numel() else None


def engine_of(trainer: Trainer) -> Any:
    """Return the DeepSpeed engine, which alone knows when it steps, or None."""
    model = trainer.model
    return model if hasattr(model, "is_gradient_accumulation_boundary") else None
