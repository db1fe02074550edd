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
        self._whole: dict[str, Tensor] = {}
        self._parts: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            keeps = keep and parameter.requires_grad and parameter.dtype.itemsize > dtype.itemsize
            part: Any = getattr(parameter, "ds_tensor", None)
            if part is None:
                if keeps:
                    self._whole[name] = parameter.detach().to("cpu", torch.float32, copy=True)
                continue
            if keeps:
                self._parts[name] = part.detach().to("cpu", torch.float32, copy=True)
            cast = part.detach().to(dtype)
            part.data = cast.pin_memory() if part.is_pinned() else cast
            parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def restore(self, module: nn.Module) -> None:
        """Give the engine's master weights the float32 values; all processes call this together."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        for name, parameter in module.named_parameters():
            value: Tensor | None = self._whole.get(name)
            if name in self._parts:
                value = self._parts[name].to(parameter.device)
                safe_set_local_fp32_param(parameter, value)
            elif value is not None and hasattr(parameter, "ds_tensor"):
                safe_set_local_fp32_param(parameter, shard_of(value, parameter))
            elif value is not None:
                safe_set_full_fp32_param(parameter, value.to(parameter.device))


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
