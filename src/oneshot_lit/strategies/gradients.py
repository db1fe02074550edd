"""The gradient of a parameter under any strategy, sharded or not.

Gradients are there between a backward pass and the optimiser step. The functions that read them
talk to the other processes, so all processes must call them in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

from oneshot_lit.errors import OneShotError


def require_readable(trainer: Trainer) -> None:
    """Refuse strategies whose gradients the functions below cannot read.

    Raises:
        OneShotError: under FSDP version 1, or several processes without ``torch.distributed``.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    advice = "use one device, DDP, ModelParallelStrategy (FSDP2) or DeepSpeed"
    root: Any = trainer.model
    if any(isinstance(module, FullyShardedDataParallel) for module in root.modules()):
        raise OneShotError(
            f"trainer.strategy: FSDP version 1 keeps no gradient of a single weight; {advice}."
        )
    if trainer.world_size > 1 and not distributed.is_initialized():
        name = type(trainer.strategy).__name__
        raise OneShotError(
            f"trainer.strategy: gradients cannot be read across processes under {name}; {advice}."
        )


def is_boundary(trainer: Trainer) -> bool:
    """Whether the optimiser steps after this batch; DeepSpeed is asked to step on every one."""
    engine = _engine(trainer)
    return engine is None or bool(engine.is_gradient_accumulation_boundary())


def loss_scale(trainer: Trainer) -> float:
    """Return the factor by which 16-bit mixed precision scales the loss before the backward."""
    engine = _engine(trainer)
    if engine is not None:
        return float(getattr(engine.optimizer, "loss_scale", 1.0))
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def every_rank_has_own_rows(trainer: Trainer) -> bool:
    """Whether each process runs whole layers on rows of its own, as without tensor parallelism."""
    replicas = getattr(trainer.strategy, "distributed_sampler_kwargs", {}).get("num_replicas")
    return replicas is None or replicas == trainer.world_size


def full_shape(parameter: nn.Parameter) -> torch.Size:
    """Return the whole shape of a parameter that may be sharded; under ZeRO-3 `shape` is empty."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def full_gradient(
    trainer: Trainer, parameter: nn.Parameter, name: str = "parameter"
) -> Tensor | None:
    """Return the gradient that the optimiser gets, on every process, or None if there is none.

    It is the mean over the processes, before clipping and without the loss scale. Under DeepSpeed
    an unused weight may have a gradient of zeros.

    Args:
        trainer: The running trainer.
        parameter: A parameter of its module, sharded or not.
        name: Its name in errors.

    Returns:
        A tensor of `full_shape`; do not write to it.

    Raises:
        OneShotError: if the gradient cannot be read under the strategy.
    """
    if not parameter.requires_grad:
        return None
    engine = _engine(trainer)
    if engine is None:
        gradient = parameter.grad
        return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
    from deepspeed.utils import safe_get_full_grad

    try:
        gradient = safe_get_full_grad(parameter)
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OneShotError(
            f"{name}: its gradient cannot be read under DeepSpeed ({reason}); leave it out of what "
            "is tracked, or use DDP."
        ) from error
    scale = loss_scale(trainer)
    return gradient if gradient is None or scale == 1.0 else gradient / scale


def gradient_norms(trainer: Trainer, parameters: Sequence[nn.Parameter]) -> Tensor:
    """Return the Frobenius norms of the full gradients, from the shards and one small message.

    Args:
        trainer: The running trainer.
        parameters: Parameters of its module; the same ones on all processes.

    Returns:
        (parameters,), float64 on the CPU; NaN where there is no gradient.
    """
    own = [_own_square(trainer, parameter) for parameter in parameters]
    known = [0.0 if square is None else 1.0 for square in own]
    sums = torch.tensor([[square or 0.0 for square in own], known], dtype=torch.float64)
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
    if _engine(trainer) is None and not any(isinstance(g, DTensor) for g in gradients):
        return torch.nn.utils.get_total_norm(gradients) if gradients else None
    norms = gradient_norms(trainer, parameters)
    known = norms[~norms.isnan()]
    return torch.linalg.vector_norm(known).float() if known.numel() else None


def _own_square(trainer: Trainer, parameter: nn.Parameter) -> float | None:
    """Return what this process adds to the squared norm, or None if it holds no gradient."""
    gradient, copies = parameter.grad, trainer.world_size
    scale = 1.0
    if isinstance(gradient, DTensor):
        mesh, placements = gradient.device_mesh, gradient.placements
        sharded = [mesh.size(n) for n, place in enumerate(placements) if not place.is_replicate()]
        copies //= math.prod(sharded)
        gradient = gradient.to_local()
    elif gradient is None and _engine(trainer) is not None and parameter.requires_grad:
        gradient, copies, scale = _zero_shard(parameter), 1, loss_scale(trainer)
    elif _engine(trainer) is not None:
        scale = loss_scale(trainer)
    if gradient is None:
        return None
    norm = float(torch.linalg.vector_norm(gradient.float())) / scale
    return norm**2 / copies


def _zero_shard(parameter: Any) -> Tensor | None:
    """Return the part of the reduced gradient that ZeRO keeps on this process, flat."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_local_grad

        shard = safe_get_local_grad(parameter).flatten()
        start = distributed.get_rank(parameter.ds_process_group) * shard.numel()
        # The last shards are padded.
        return shard[: max(0, parameter.ds_numel - start)]
    fragment: Any = getattr(parameter, "_hp_mapping", None)
    if fragment is None:
        return None
    shard = fragment.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
    if shard.numel() == parameter.numel():
        address = fragment.lp_fragment_address
        shard = shard.narrow(0, address.start, address.numel)
    return shard


def _engine(trainer: Trainer) -> Any:
    """Return the DeepSpeed engine, which alone knows when it steps, or None."""
    model = trainer.model
    return model if hasattr(model, "is_gradient_accumulation_boundary") else None
