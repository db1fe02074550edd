"""Compare two gradients: cosine from their factors, overlap of their subspaces."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from oneshot_lit.spectral.factors import checked_factors, gradient_svd
from oneshot_lit.spectral.precision import full_precision


@full_precision
def gradient_cosine(
    inputs: Tensor, output_grads: Tensor, other_inputs: Tensor, other_output_grads: Tensor
) -> float:
    """Return the cosine of the angle between two gradients of one weight, from factors alone.

    ``<D^T X, D'^T X'> = sum_ij (D D'^T)_ij (X X'^T)_ij``, a sum over pairs of tokens.

    Args:
        inputs: X, (tokens, in_features).
        output_grads: D, (tokens, out_features).
        other_inputs: X', (other_tokens, in_features).
        other_output_grads: D', (other_tokens, out_features).

    Returns:
        In [-1, 1]; NaN if either gradient is zero, which has no direction.

    Raises:
        ValueError: if the factors do not belong together.
    """
    x, d = checked_factors(inputs, output_grads)
    y, e = checked_factors(other_inputs, other_output_grads)
    if x.shape[-1] != y.shape[-1] or d.shape[-1] != e.shape[-1]:
        raise ValueError(
            f"gradients of different weights: ({d.shape[-1]}, {x.shape[-1]}) and "
            f"({e.shape[-1]}, {y.shape[-1]})"
        )
    # Sums of many products of either sign lose too much in float32.
    x, d, y, e = x.double(), d.double(), y.double(), e.double()
    both = ((d @ e.mT) * (x @ y.mT)).sum()
    norms = ((d @ d.mT) * (x @ x.mT)).sum() * ((e @ e.mT) * (y @ y.mT)).sum()
    if norms <= 0:
        return float("nan")
    return float((both / norms.sqrt()).clamp(-1, 1))


@full_precision
def subspace_overlap(u: Tensor, v: Tensor) -> float:
    """Return ``||U^T V||_F^2 / min(rank U, rank V)`` (arXiv 2601.01887): 1 if one holds the other.

    Args:
        u: (features, k) with orthonormal columns, such as left singular vectors.
        v: (features, l) with orthonormal columns.

    Raises:
        ValueError: if the columns are not orthonormal, or of another space.
    """
    a, b = u.double(), v.double()
    if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[0] or not (a.shape[1] and b.shape[1]):
        raise ValueError(f"no two subspaces of one space: {tuple(u.shape)} and {tuple(v.shape)}")
    for basis in (a, b):
        identity = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device)
        if (basis.mT @ basis - identity).abs().max() > 1e-3:
            raise ValueError("the columns of a basis must be orthonormal")
    # Round-off may lift it above 1.
    return min(1.0, float((a.mT @ b).square().sum() / min(a.shape[1], b.shape[1])))


def subspace_overlap_chance(k: int, other_k: int, features: int) -> float:
    """Return the expected overlap of two random subspaces: ``max(k, other_k) / features``.

    ``E ||U^T V||_F^2 = k l / d`` for uniformly random subspaces, divided by the smaller dimension.
    """
    if not (1 <= k <= features and 1 <= other_k <= features):
        raise ValueError(f"dimensions {k} and {other_k} must be between 1 and {features}")
    return max(k, other_k) / features


class GradientComparison(NamedTuple):
    """How near two gradients of one weight are.

    Attributes:
        overlap: See `subspace_overlap`, of the leading left singular vectors.
        overlap_chance: See `subspace_overlap_chance`, for the same dimensions.
        cosine: See `gradient_cosine`.
    """

    overlap: float
    overlap_chance: float
    cosine: float


def compare_gradients(
    inputs: Tensor,
    output_grads: Tensor,
    other_inputs: Tensor,
    other_output_grads: Tensor,
    k: int = 20,
) -> GradientComparison:
    """Compare two gradients of one weight, from their factors alone.

    Args:
        inputs: X, (tokens, in_features).
        output_grads: D, (tokens, out_features).
        other_inputs: X', (other_tokens, in_features).
        other_output_grads: D', (other_tokens, out_features).
        k: Compare at most this many leading left singular vectors; of a gradient of lower rank all.

    Returns:
        NaN in every place if either gradient is zero, which has neither direction nor subspace.

    Raises:
        ValueError: if the factors do not belong together, or hold NaN or infinity.
    """
    cosine = gradient_cosine(inputs, output_grads, other_inputs, other_output_grads)
    u = _leading(inputs, output_grads, k)
    v = _leading(other_inputs, other_output_grads, k)
    if not (u.shape[1] and v.shape[1]):
        return GradientComparison(float("nan"), float("nan"), float("nan"))
    chance = subspace_overlap_chance(u.shape[1], v.shape[1], len(u))
    return GradientComparison(subspace_overlap(u, v), chance, cosine)


def _leading(inputs: Tensor, output_grads: Tensor, k: int) -> Tensor:
    """Return the left singular vectors, (out_features, <= k), of values that are not round-off."""
    most = min(*inputs.shape, output_grads.shape[1])
    if most == 0:
        return output_grads.new_zeros(output_grads.shape[1], 0)
    u, s, _ = gradient_svd(inputs, output_grads, min(k, most))
    floor = s[0] * max(inputs.shape[1], output_grads.shape[1]) * torch.finfo(s.dtype).eps
    return u[:, (s > floor) & (s > 0)]
