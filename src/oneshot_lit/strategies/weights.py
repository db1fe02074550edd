"""The weights of a model under any strategy: each process's own part, and whole ones in turn.

Weights are the float32 masters where the engine computes in 16 bits. All processes call these
functions together and with the same parameters.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def is_sharded(module: nn.Module) -> bool:
    """Whether any parameter is sharded."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_tensor") for p in module.parameters())


def runs_together(module: nn.Module) -> bool:
    """Whether all processes must run each layer at once, because each holds a part of it."""
    several = distributed.is_initialized() and distributed.get_world_size() > 1
    return several and is_sharded(module)


def own_weights(module: nn.Module, names: Container[str] | None = None) -> dict[str, Tensor]:
    """Return copies of the trained weights on the CPU, of sharded ones this process's part.

    Args:
        module: The module that trains.
        names: Only these; all if not given.
    """
    return {name: part.to("cpu", copy=True) for name, part in trained_parts(module, names)}


def trained_parts(
    module: nn.Module, names: Container[str] | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the trained weights as `own_weights` returns them, but where they are.

    Most are no copies: use them before the next step, and do not change them.
    """
    reshard(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and (names is None or name in names):
            yield name, _own(parameter).detach()


@torch.no_grad()
def set_own_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give trained weights the values that `own_weights` returned, or a mix of them."""
    reshard(module)
    parameter: Any
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad or name not in weights:
            continue
        value = weights[name].to(parameter.device)
        if isinstance(parameter, DTensor):
            parameter.to_local().copy_(value)
        elif _has_zero3_master(parameter):
            from deepspeed.utils import safe_set_local_fp32_param

            safe_set_local_fp32_param(parameter, value)
            # Small parameters stay whole between steps, and would keep their values.
            if parameter.data.numel() > 0:
                parameter.partition()
            parameter.ds_tensor.copy_(value)
        else:
            parameter.copy_(value)
            if hasattr(parameter, "_hp_mapping"):
                from deepspeed.utils import safe_set_full_fp32_param

                safe_set_full_fp32_param(parameter, value)


def weight_parts(module: nn.Module) -> dict[str, Tensor]:
    """Return this process's part of each trained weight, flat; do not write to it.

    It matches the part of a gradient that an edit gets, entry by entry. Unlike `own_weights` it
    sends no message, and may be a view.
    """
    reshard(module)
    named = module.named_parameters()
    return {name: _part(p).detach() for name, p in named if p.requires_grad}


def whole_weight(parameter: Any) -> Tensor:
    """Return a whole parameter, gathered from all processes where it is sharded."""
    if isinstance(parameter, DTensor):
        whole: Tensor = parameter.full_tensor()
        return whole.detach()
    if parameter.requires_grad and (
        _has_zero3_master(parameter) or hasattr(parameter, "_hp_mapping")
    ):
        from deepspeed.utils import safe_get_full_fp32_param

        whole = safe_get_full_fp32_param(parameter)
        return whole.view(getattr(parameter, "ds_shape", parameter.shape))
    if hasattr(parameter, "ds_tensor"):
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters([parameter]):
            return parameter.detach().clone()  # type: ignore[no-any-return]
    return parameter.detach()  # type: ignore[no-any-return]


def restart_optimizer(trainer: Trainer, factor: float) -> None:
    """Start over with a fresh optimiser, at `factor` times the configured rate.

    Args:
        trainer: The running trainer; its module's `configure_optimizers` gives the new rate.
        factor: The rate of the new optimiser divided by the old one's first rate.
    """
    optimizer: Any = trainer.optimizers[0]
    if not hasattr(trainer.model, "is_gradient_accumulation_boundary"):
        trainer.strategy.setup_optimizers(trainer)
        return
    # The engine's optimiser works on flat parts that it alone can make; but a state of zeros is a
    # new state for SGD, Adam and similar ones.
    inner: Any = getattr(optimizer, "optimizer", optimizer)
    for state in inner.state.values():
        for key, value in state.items():
            if isinstance(value, Tensor):
                value.zero_()
            elif isinstance(value, (int, float)):
                state[key] = type(value)(0)
    for group in inner.param_groups:
        group.pop("step", None)
        group["lr"] = group.get("initial_lr", group["lr"]) * factor
        if "initial_lr" in group:
            group["initial_lr"] = group["lr"]
    make = getattr(trainer.lightning_module, "lr_scheduler", None)
    for config in trainer.lr_scheduler_configs:
        if make is not None:
            config.scheduler = make(inner)


def reshard(module: nn.Module) -> None:
    """Let FSDP2 shard again the parameters that it keeps whole after a forward pass."""
    for each in module.modules():
        if isinstance(each, FSDPModule):
            each.reshard()


def _own(parameter: Any) -> Tensor:
    if isinstance(parameter, DTensor):
        return parameter.to_local()
    if _has_zero3_master(parameter):
        from deepspeed.utils import safe_get_local_fp32_param

        part: Tensor = safe_get_local_fp32_param(parameter)
        return part
    return whole_weight(parameter)


def _part(parameter: Any) -> Tensor:
    if isinstance(parameter, DTensor):
        return parameter.to_local().flatten()
    if _has_zero3_master(parameter):
        part = _own(parameter).flatten()
        start = distributed.get_rank(parameter.ds_process_group) * part.numel()
        # The last shards are padded.
        return part[: max(0, parameter.ds_numel - start)]
    fragment: Any = getattr(parameter, "_hp_mapping", "whole")
    if fragment == "whole":
        return parameter.flatten()
    return parameter.new_zeros(0) if fragment is None else fragment.hp_fragment.flatten()


def _has_zero3_master(parameter: Any) -> bool:
    return hasattr(parameter, "ds_tensor") and hasattr(parameter, "_z3_optimizer")
