"""The step of a low-rank repair: leading singular triplets, written into an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.spectral import gradient_svd, rank_k_update

# The leading singular triplets of a matrix: U, s, V.
Triplets = tuple[Tensor, Tensor, Tensor]


def triplets(x: Tensor, guarded: Tensor, d: Tensor, k: int, normalise: bool) -> Triplets:
    """Return the k leading triplets of a matrix's step of size 1.

    Args:
        x: (tokens, in_features), the right factor of the instance's gradient.
        guarded: The same after the projection.
        d: (tokens, out_features), the left factor.
        k: How many; fewer if the gradient has fewer.
        normalise: Scale the step to the spectral norm 1; otherwise it has the norm of the
            unguarded one.
    """
    k = min(k, *x.shape, d.shape[1])
    u, s, v = gradient_svd(guarded, d, k)
    if normalise:
        return u, s / s[:1].clamp_min(torch.finfo(s.dtype).tiny), v
    if guarded is not x and s.any():
        s = s * (gradient_svd(x, d, k)[1].norm() / s.norm())
    return u, s, v


@torch.no_grad()
def write_step(layers: Mapping[str, Any], steps: Mapping[str, Triplets], alpha: float) -> None:
    """Write a step of size `alpha` into the leading columns of each layer's adapter."""
    for name, (u, s, v) in steps.items():
        b, a = rank_k_update(u, s, v, alpha)
        factor(layers[name], "A")[: len(s)].copy_(a)
        factor(layers[name], "B")[:, : len(s)].copy_(b)


def factor(layer: Any, which: str) -> Tensor:
    """Return the adapter's A, (rank, in_features), or B, (out_features, rank)."""
    return getattr(layer, f"lora_{which}")["default"].weight  # type: ignore[no-any-return]
