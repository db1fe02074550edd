"""The step of a low-rank repair: leading triplets of a guarded gradient, in an adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.models.linear_layers import instance_factors, projected_inputs
from oneshot_lit.spectral import gradient_svd, rank_k_update

# The leading singular triplets of a matrix: U, s, V.
Triplets = tuple[Tensor, Tensor, Tensor]


def directions(
    module: Any,
    instance: Mapping[str, Tensor],
    guard: Mapping[str, Tensor] | None,
    lambdas: Sequence[float],
    k: int,
    normalise: bool,
) -> list[dict[str, Triplets]]:
    """Return each layer's step of size 1, from one backward pass and one forward sweep.

    Args:
        module: A `LanguageModelModule` with `layers`, name -> layer.
        instance: Right-padded batch with labels.
        guard: Right-padded batch of all guard rows; None for an unguarded step.
        lambdas: Lambdas of the projection.
        k: Triplets a matrix.
        normalise: See `triplets`.

    Returns:
        Name -> step, for each lambda.

    Raises:
        ValueError: for a loss or a gradient that is not finite, a gradient that is zero, or a
            lambda that is too small to compute with.
    """
    factors, loss = instance_factors(module, module.layers, dict(instance))
    if not torch.isfinite(loss):
        raise ValueError(f"the loss is {loss.item()}; fix the row or the model")
    inputs = {name: x for name, (x, _) in factors.items()}
    guarded = {name: x.expand(len(lambdas), *x.shape) for name, x in inputs.items()}
    try:
        if guard is not None:
            guarded = projected_inputs(module, module.layers, guard, inputs, lambdas)
        made = [
            {n: triplets(x, guarded[n][i], d, k, normalise) for n, (x, d) in factors.items()}
            for i in range(len(lambdas))
        ]
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise ValueError(str(error)) from error
    if not any(s.any() for _, s, _ in made[0].values()):
        raise ValueError("its gradient is zero; give another one")
    return made


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
    if s.any():
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
