"""Keep a step out of the subspace that harmless inputs use.

The idea of projecting an update away from what other inputs use is that of AlphaEdit
(arXiv 2410.02355, for knowledge editing); here it is applied to the one instance's gradient.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oneshot_lit.spectral.precision import full_precision

# Columns of a product that are computed at once.
_BLOCK = 256


@full_precision
def guarded_inputs(
    inputs: Tensor,
    guard_inputs: Tensor,
    guard_lambda: float | Sequence[float],
    counts: Tensor | None = None,
) -> Tensor:
    """Return ``X P`` with ``P = (I + C / lambda)^-1``, so that ``D^T X P`` is the guarded gradient.

    ``C = c X_g^T X_g`` is the second moment of the guard inputs, scaled to mean diagonal 1. Along a
    direction in which it has the eigenvalue e the gradient is scaled by ``lambda / (lambda + e)``:
    directions that harmless inputs hardly use stay, their main ones vanish.

    C is never held if there are fewer guard tokens than features:
    ``P = I - X_g^T (lambda / c I + X_g X_g^T)^-1 X_g``.

    Args:
        inputs: X, (tokens, in_features), of the instance.
        guard_inputs: X_g, (guard_tokens, in_features), of the same layer.
        guard_lambda: Lambda, > 0; small values guard more. Several share the product of the guard
            inputs, which takes most of the time.
        counts: (guard_tokens,), how often each guard token counts; once if not given.

    Returns:
        (tokens, in_features) in the dtype of `inputs`, float32 at least; for several lambdas
        (lambdas, tokens, in_features).

    Raises:
        ValueError: for factors of different layers, a lambda that is not above 0 or too small to
            compute with, or NaN.
    """
    if inputs.ndim != 2 or guard_inputs.ndim != 2 or inputs.shape[1] != guard_inputs.shape[1]:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and guard_inputs {tuple(guard_inputs.shape)} must be "
            "(tokens, in_features) of one layer"
        )
    if isinstance(guard_lambda, Sequence):
        return torch.stack(_guarded(inputs, guard_inputs, guard_lambda, counts))
    return _guarded(inputs, guard_inputs, [guard_lambda], counts)[0]


def _guarded(
    inputs: Tensor, guard_inputs: Tensor, lambdas: Sequence[float], counts: Tensor | None
) -> list[Tensor]:
    for each in lambdas:
        if not each > 0:
            raise ValueError(f"lambda must be above 0, not {each}")
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    # The eigenvalues of C spread over more than float32 can invert well.
    exact = wide.dtype if wide.device.type == "mps" else torch.float64
    x, guard = wide.to(exact), guard_inputs.to(exact)
    if not (torch.isfinite(x).all() and torch.isfinite(guard).all()):
        raise ValueError("the inputs hold NaN or infinity")
    if counts is not None:
        guard = guard * counts.to(exact).sqrt().unsqueeze(-1)
    if (energy := guard.square().sum()) == 0:
        return [wide] * len(lambdas)
    few = len(guard) < guard.shape[1]
    gram = _gram(guard.T if few else guard)
    right = guard @ x.T if few else x.T
    results = []
    for each in lambdas:
        ridge = each * energy / guard.shape[1]
        solved = torch.cholesky_solve(right, _factor(gram, ridge, each))
        results.append((x - solved.T @ guard if few else ridge * solved.T).to(wide.dtype))
    return results


def _gram(rows: Tensor) -> Tensor:
    """Return ``rows^T rows``; above the diagonal, which Cholesky never reads, it is incomplete."""
    gram = rows.new_zeros(rows.shape[1], rows.shape[1])
    for start in range(0, len(gram), _BLOCK):
        end = start + _BLOCK
        torch.matmul(rows[:, start:end].T, rows[:, :end], out=gram[start:end, :end])
    return gram


def _factor(gram: Tensor, ridge: Tensor, guard_lambda: float) -> Tensor:
    """Return the Cholesky factor of ``gram + ridge I``."""
    shifted = gram.clone()
    shifted.diagonal().add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(shifted)
    if failed.any():
        raise ValueError(f"lambda {guard_lambda:g} is too small to compute with; raise it")
    return factor  # type: ignore[no-any-return]
