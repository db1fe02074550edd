"""Float32 master weights that start from the model's own weights, not from their rounding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MasterWeights:
    """What DeepSpeed's 16-bit engine would round away when it starts.

    The engine casts a model to 16 bits and makes its float32 master weights from the result. A
    fine-tuned model differs from its base by less than that rounding.

    Args:
        module: The model before the engine takes it; ZeRO-3 may have sharded it in float32.
        dtype: The engine's 16-bit dtype; sharded parameters are cast to it here.
        keep: Whether there will be master weights; evaluation has none.
    """

    def __init__(self, module: nn.Module, dtype: torch.dtype, keep: bool) -> None:
        # Whole tensors, or this process's shards.
        self._kept: dict[str, Tensor] = {}
        parameter: Any
        for name, parameter in module.named_parameters():
            own = getattr(parameter, "ds_tensor", parameter).detach()
            if keep and parameter.requires_grad and parameter.dtype.itemsize > dtype.itemsize:
                self._kept[name] = own.to("cpu", torch.float32, copy=True)
            if hasattr(parameter, "ds_tensor"):
                cast = own.to(dtype)
                parameter.ds_tensor.data = cast.pin_memory() if own.is_pinned() else cast
                parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Give the engine's master weights the float32 values; all processes call this together."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        parameter: Any
        for name, parameter in module.named_parameters():
            if name not in self._kept:
                continue
            value = self._kept[name].to(parameter.device)
            if not hasattr(parameter, "ds_tensor"):
                safe_set_full_fp32_param(parameter, value)
                continue
            if value.numel() != parameter.ds_tensor.numel():
                value = shard_of(value, parameter)
            safe_set_local_fp32_param(parameter, value)


def shard_of(whole: Tensor, parameter: Any) -> Tensor:
    """Return this process's part of a tensor as ZeRO-3 shards it: flat, padded with zeros.

    Args:
        whole: The values of the whole parameter.
        parameter: A parameter that ZeRO-3 has sharded.
    """
    size = parameter.ds_tensor.numel()
    start = torch.distributed.get_rank(parameter.ds_process_group) * size
    flat = whole.flatten()[start : start + size]
    return torch.nn.functional.pad(flat, (0, size - flat.numel()))


def keeps_masters(strategy: Any) -> bool:
    """Whether the strategy keeps float32 weights beside the 16-bit ones that it computes with."""
    config = getattr(strategy, "config", None)
    return isinstance(config, dict) and any(
        config.get(key, {}).get("enabled") for key in ("bf16", "fp16")
    )
