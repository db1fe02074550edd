"""The adapter that holds the steps of a low-rank repair, and how it is added to a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.weight_files import tensors_of, weight_files
from oneshot_lit.spectral import rank_k_update

Triplets = tuple[Tensor, Tensor, Tensor]


def factor(layer: nn.Module, which: str) -> Tensor:
    """Return the adapter's A, (rank, in_features), or B, (out_features, rank)."""
    return getattr(layer, f"lora_{which}")["default"].weight  # type: ignore[no-any-return]


@torch.no_grad()
def write_step(
    layers: Mapping[str, nn.Module], steps: Mapping[str, Triplets], alpha: float
) -> None:
    """Write a step of size `alpha` into the leading columns of each layer's adapter."""
    for name, (u, s, v) in steps.items():
        b, a = rank_k_update(u, s, v, alpha)
        factor(layers[name], "A")[: len(s)].copy_(a)
        factor(layers[name], "B")[:, : len(s)].copy_(b)


def stepped(layers: Mapping[str, Any], name: str, weight: Tensor) -> Tensor:
    """Return a weight with its adapter added, in float32 or wider; itself if it has none.

    Args:
        layers: Name -> layer with an adapter.
        name: The weight's name in the model's files, possibly without a prefix.
        weight: The weight as it is in the files.
    """
    layer = next((each for own, each in layers.items() if _same(f"{own}.weight", name)), None)
    if layer is None:
        return weight
    step = factor(layer, "B").double() @ factor(layer, "A").double()
    # Conv1D of GPT-2 holds the transpose.
    step = step if isinstance(layer.get_base_layer(), nn.Linear) else step.T
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.double() + step.to(weight.device)).to(wide)


def require_named(layers: Iterable[str], folder: Path) -> None:
    """Refuse a model whose files name the weights of the layers otherwise.

    Raises:
        OneShotError: naming the first such layer.
    """
    names = list(tensors_of(weight_files(folder)))
    for own in layers:
        if not any(_same(f"{own}.weight", name) for name in names):
            raise OneShotError(
                f"{folder}: no tensor is named as {own}.weight, so nothing can be merged; leave "
                "export.merged out and load the adapter."
            )


def _same(own: str, other: str) -> bool:
    return own == other or own.endswith(f".{other}") or other.endswith(f".{own}")
