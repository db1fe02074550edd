"""Keep a step out of the subspace that harmless inputs use.

The idea of projecting an update away from what other inputs use is that of AlphaEdit
(arXiv 2410.02355, for knowledge editing); here it is applied to the one instance's gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneshot_lit.spectral.precision import full_precision


@full_precision
def guarded_inputs(inputs: Tensor, guard_inputs: Tensor, guard_lambda: float) -> Tensor:
    """Return ``X P`` with ``P = (I + C / lambda)^-1``, so that ``D^T X P`` is the guarded gradient.

    ``C = c X_g^T X_g`` is the second moment of the guard inputs, scaled to mean diagonal 1. Along a
    direction in which it has the eigenvalue e the gradient is scaled by ``lambda / (lambda + e)``:
    directions that harmless inputs hardly use stay, their main ones vanish.

    C is never held if there are fewer guard tokens than features:
    ``P = I - X_g^T (lambda / c I + X_g X_g^T)^-1 X_g``.

    Args:
        inputs: X, (tokens, in_features), of the instance.
        guard_inputs: X_g, (guard_tokens, in_features), of the same layer.
        guard_lambda: Lambda, > 0; small values guard more.

    Returns:
        (tokens, in_features) in the dtype of `inputs`, float32 at least.

    Raises:
        ValueError: for factors of different layers, a lambda that is not above 0 or too small to
            compute with, or NaN.
    """
    if inputs.ndim != 2 or guard_inputs.ndim != 2 or inputs.shape[1] != guard_inputs.shape[1]:
        raise ValueError(
            f"inputs {tuple(inputs.shape)} and guard_inputs {tuple(guard_inputs.shape)} must be "
            "(tokens, in_features) of one layer"
        )
    if not guard_lambda > 0:
        raise ValueError(f"lambda must be above 0, not {guard_lambda}")
    wide = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
    # The eigenvalues of C spread over more than float32 can invert well.
    exact = wide.dtype if wide.device.type == "mps" else torch.float64
    x, guard = wide.to(exact), guard_inputs.to(exact)
    if not (torch.isfinite(x).all() and torch.isfinite(guard).all()):
        raise ValueError("the inputs hold NaN or infinity")
    energy = guard.square().sum()
    if energy == 0:
        return wide
    ridge = guard_lambda * energy / guard.shape[1]
    if len(guard) < guard.shape[1]:
        gram = guard @ guard.T
        gram.diagonal().add_(ridge)
        within = torch.cholesky_solve(guard @ x.T, _factor(gram, guard_lambda))
        return (x - within.T @ guard).to(wide.dtype)
    moment = guard.T @ guard
    moment.diagonal().add_(ridge)
    solved = torch.cholesky_solve(x.T, _factor(moment, guard_lambda))
    return (ridge * solved.T).to(wide.dtype)


def _factor(matrix: Tensor, guard_lambda: float) -> Tensor:
    """Return the Cholesky factor of a positive definite matrix."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed.any():
        raise ValueError(f"lambda {guard_lambda:g} is too small to compute with; raise it")
    return factor
