"""Singular values and vectors of a linear layer's weight gradient from its token factors.

For ``y = x W^T`` the gradient of any loss with respect to W is ``g = D^T X``, with the inputs X and
the output gradients D of all tokens; its rank is at most the number of tokens (METHODS: arXiv
2601.01887 measures these spectra; the factor identity is elementary linear algebra). With thin QR
``D^T = Q_d R_d`` and ``X^T = Q_x R_x``, ``g = Q_d (R_d R_x^T) Q_x^T``: the small (tokens, tokens)
matrix in the middle has the singular values of g, and its vectors give those of g.
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneshot_lit.spectral.precision import full_precision


@full_precision
def gradient_singular_values(
    inputs: Tensor, output_grads: Tensor, triangles: dict[int, Tensor] | None = None
) -> Tensor:
    """Return the singular values of ``output_grads^T @ inputs``, largest first.

    The (out, in) matrix is neither formed nor decomposed while there are fewer tokens than its
    smaller side has; from there on the matrix itself is the cheaper exact route.

    Args:
        inputs: X, (..., tokens, in_features); half precision is computed on in float32.
        output_grads: D, (..., tokens, out_features); leading dimensions are a batch of matrices.
        triangles: Keeps R_x by the id of X, for gradients of layers with the same input; X must
            live as long as it.

    Returns:
        (..., min(tokens, in_features, out_features)) in float32 or float64, descending, >= 0.

    Raises:
        ValueError: if the factors do not belong together, or hold NaN or infinity.
    """
    x, d = checked_factors(inputs, output_grads)
    if x.shape[-2] == 0:
        return x.new_zeros(*x.shape[:-2], 0)
    if _has_small_core(x, d):
        kept = {} if triangles is None else triangles
        if id(inputs) not in kept:
            kept[id(inputs)] = torch.linalg.qr(x.mT, mode="r").R
        r_d = torch.linalg.qr(d.mT, mode="r").R
        return torch.linalg.svdvals(_finite(r_d @ kept[id(inputs)].mT))
    return _of_whole(_finite(d.mT @ x))


@full_precision
def matrix_singular_values(gradient: Tensor) -> Tensor:
    """Return the singular values of a whole gradient, largest first.

    Args:
        gradient: (..., out, in); half precision is computed on in float32.

    Returns:
        (..., min(out, in)) in float32 or float64.

    Raises:
        ValueError: if there is a NaN or an infinity among the entries.
    """
    wide = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return _of_whole(_finite(wide))


def _of_whole(matrix: Tensor) -> Tensor:
    """Return the singular values of a matrix; on CPUs float32 ones from its Gram matrix in float64.

    That is faster, and its errors of 1e-8 of the largest value are below those of float32.
    """
    if matrix.dtype != torch.float32 or matrix.device.type != "cpu":
        return torch.linalg.svdvals(matrix)
    wide = matrix.double() if matrix.shape[-2] <= matrix.shape[-1] else matrix.double().mT
    return torch.linalg.eigvalsh(wide @ wide.mT).flip(-1).clamp(min=0).sqrt().float()


@full_precision
def gradient_svd(
    inputs: Tensor, output_grads: Tensor, k: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `k` largest singular triplets of ``output_grads^T @ inputs``.

    Args:
        inputs: X, (..., tokens, in_features); half precision is computed on in float32.
        output_grads: D, (..., tokens, out_features).
        k: How many, at most min(tokens, in_features, out_features); all of them if not given.

    Returns:
        U (..., out_features, k) and V (..., in_features, k) with orthonormal columns, and the
        singular values (..., k), descending, with ``g ~ U diag(s) V^T``. Vectors of zero singular
        values are orthonormal, and otherwise arbitrary.

    Raises:
        ValueError: for factors that do not belong together, non-finite ones, or too large a `k`.
    """
    x, d = checked_factors(inputs, output_grads)
    most = min(x.shape[-2], x.shape[-1], d.shape[-1])
    if k is None:
        k = most
    if not 1 <= k <= most:
        raise ValueError(
            f"k must be between 1 and {most} (tokens and sides of the matrix), not {k}"
        )
    if _has_small_core(x, d):
        q_d, r_d = torch.linalg.qr(d.mT)
        q_x, r_x = torch.linalg.qr(x.mT)
        u, s, v = torch.linalg.svd(_finite(r_d @ r_x.mT), full_matrices=False)
        return q_d @ u[..., :k], s[..., :k], q_x @ v.mT[..., :k]
    u, s, v = torch.linalg.svd(_finite(d.mT @ x), full_matrices=False)
    return u[..., :k], s[..., :k], v.mT[..., :k]


def rank_k_update(
    u: Tensor, singular_values: Tensor, v: Tensor, step: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``-step * sum_i s_i u_i v_i^T`` as a product of two factors, exactly a LoRA adapter.

    The scale is shared evenly, ``sqrt(step s_i)`` on either side, so that neither factor is too
    small for half precision (arXiv 2601.01887, projective recovery; METHODS).

    Args:
        u: (out_features, k) with orthonormal columns.
        singular_values: (k,), >= 0.
        v: (in_features, k) with orthonormal columns.
        step: Step size alpha, >= 0.

    Returns:
        B (out_features, k), with the sign, and A (k, in_features); the change is ``B @ A``.
    """
    scale = (torch.as_tensor(step, dtype=u.dtype, device=u.device) * singular_values).sqrt()
    return -u * scale, scale[:, None] * v.mT


def checked_factors(inputs: Tensor, output_grads: Tensor) -> tuple[Tensor, Tensor]:
    """Return both factors in the dtype to compute in, or raise what is wrong with them."""
    x, d = inputs, output_grads
    if x.ndim < 2 or d.ndim < 2 or x.shape[:-1] != d.shape[:-1]:
        raise ValueError(
            f"inputs {tuple(x.shape)} and output_grads {tuple(d.shape)} must be (..., tokens, "
            "in_features) and (..., tokens, out_features)"
        )
    dtype = torch.promote_types(torch.promote_types(x.dtype, d.dtype), torch.float32)
    return x.to(dtype), d.to(dtype)


def _has_small_core(x: Tensor, d: Tensor) -> bool:
    """Whether there are fewer tokens than rows and columns of the gradient."""
    return x.shape[-2] < min(x.shape[-1], d.shape[-1])


def _finite(matrix: Tensor) -> Tensor:
    # LAPACK reports this for some shapes only, and returns numbers for others.
    if not torch.isfinite(matrix).all():
        raise ValueError("the gradient holds NaN or infinity")
    return matrix
