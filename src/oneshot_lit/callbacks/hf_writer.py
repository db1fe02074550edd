"""Write a model as a Hugging Face folder under any strategy; all processes take part.

A sharded model is gathered file by file, so that no process holds more of it than a file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor, nn

from oneshot_lit.strategies.gradients import full_shape
from oneshot_lit.strategies.weights import reshard, whole_weight

# What `transformers` calls the files, and how large they get at most.
_PATTERN, _INDEX, _LARGEST = (
    "model{suffix}.safetensors",
    "model.safetensors.index.json",
    5 * 10**9,
)


def write_model(model: Any, folder: Path | None, dtype: torch.dtype | None = None) -> None:
    """Write config and weights; loads with `AutoModelForCausalLM.from_pretrained`.

    Args:
        model: A Hugging Face model, sharded or not.
        folder: An empty folder on the process that writes, None on the others.
        dtype: Cast floating-point weights to it; as they are if not given.
    """
    reshard(model)
    if not any(in_parts(p) for p in model.parameters()):
        if folder is not None:
            _write_whole(model, folder, dtype)
        return
    tensors = _tensors(model)
    plan = split_torch_state_dict_into_shards(
        {name: _empty(tensor, dtype) for name, tensor in tensors.items()},
        filename_pattern=_PATTERN,
        max_shard_size=_LARGEST,
    )
    for file, names in plan.filename_to_tensors.items():
        gathered = gather([(name, tensors[name]) for name in names], folder is not None, dtype)
        if folder is not None:
            save_file(gathered, folder / file, metadata={"format": "pt"})
    if folder is None:
        return
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / _INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    _write_configs(model, folder, dtype)


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
            # Tensors that share memory cannot be saved.
            kept[name] = whole.to("cpu", _target(whole, dtype), copy=True).contiguous()
        del whole
    return kept


def _tensors(model: nn.Module) -> dict[str, Any]:
    """Return parameters and persistent buffers by name, of tied ones only the first."""
    kept = set(model.state_dict(keep_vars=True))
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if name in kept}


def in_parts(parameter: Any) -> bool:
    """Whether a parameter is sharded, or a copy of sharded master weights."""
    return (
        hasattr(parameter, "ds_id")
        or hasattr(parameter, "_hp_mapping")
        or (hasattr(parameter, "full_tensor"))
    )


def _empty(tensor: Any, dtype: torch.dtype | None) -> Tensor:
    wide = tensor.requires_grad and in_parts(tensor) and not hasattr(tensor, "full_tensor")
    own = torch.float32 if wide else tensor.dtype
    plain = torch.empty(0, dtype=own)
    return torch.empty(full_shape(tensor), dtype=_target(plain, dtype), device="meta")


def _target(tensor: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype


def _write_whole(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    if dtype is None:
        model.save_pretrained(folder)
        return
    kept = {n: t.data for n, t in [*model.named_parameters(), *model.named_buffers()]}
    usual = model.config.dtype
    model.to(dtype)
    model.save_pretrained(folder)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        tensor.data = kept[name]
    model.config.dtype = usual


def _write_configs(model: Any, folder: Path, dtype: torch.dtype | None) -> None:
    usual, architectures = model.config.dtype, model.config.architectures
    model.config.dtype = torch.float32 if dtype is None else dtype
    # FSDP2 puts a prefix before the class's name.
    model.config.architectures = [type(model).__name__.removeprefix("FSDP")]
    model.config.save_pretrained(folder)
    model.config.dtype, model.config.architectures = usual, architectures
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
