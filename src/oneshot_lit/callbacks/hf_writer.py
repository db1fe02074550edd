"""Write a model as a Hugging Face folder under any strategy; all processes take part."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.strategies.weights import reshard, whole_weight


def write_model(model: Any, folder: Path | None, dtype: torch.dtype | None = None) -> None:
    """Write config and weights; loads with `AutoModelForCausalLM.from_pretrained`.

    Args:
        model: A Hugging Face model, sharded or not; a sharded one is gathered in the memory of the
            host of the process that writes.
        folder: An empty folder on the process that writes, None on the others.
        dtype: Cast floating-point weights to it; as they are if not given.
    """
    reshard(model)
    if dtype is None and not any(in_parts(p) for p in model.parameters()):
        if folder is not None:
            model.save_pretrained(folder)
        return
    # Tied parameters come once.
    persistent = set(model.state_dict(keep_vars=True))
    named = [*model.named_parameters(), *model.named_buffers()]
    weights = gather([(n, t) for n, t in named if n in persistent], folder is not None, dtype)
    if folder is None:
        return
    usual = model.config.dtype, model.config.architectures
    model.save_pretrained(folder, state_dict=weights, max_shard_size="5GB")
    # The model's own dtype may be that of 16-bit copies.
    model.config.dtype = dtype or torch.float32
    model.config.save_pretrained(folder)
    model.config.dtype, model.config.architectures = usual


def gather(
    tensors: Iterable[tuple[str, Any]], keep: bool, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Return whole tensors on the CPU; {} on processes that do not keep them.

    Args:
        tensors: Names with parameters or buffers, the same on all processes.
        keep: Whether this process wants them.
        dtype: Cast floating-point tensors to it.
    """
    kept = {}
    for name, tensor in tensors:
        whole = whole_weight(tensor)
        if keep:
            target = dtype if dtype is not None and whole.is_floating_point() else whole.dtype
            # Tensors that share memory cannot be saved.
            kept[name] = whole.to("cpu", target, copy=True).contiguous()
        del whole
    return kept


def in_parts(parameter: Any) -> bool:
    """Whether a parameter is sharded, or a copy of sharded master weights."""
    return any(hasattr(parameter, name) for name in ("ds_id", "_hp_mapping", "full_tensor"))
