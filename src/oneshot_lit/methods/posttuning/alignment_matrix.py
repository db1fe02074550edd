"""What SafeLoRA and SafeMERGE share: the matrix of an alignment, and the cosine that decides.

Source: Hsu et al., "Safe LoRA" (arXiv 2405.16833), equations 1 and 2.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# The releases round cosines to so many decimals before they compare them.
DECIMALS = 5
# Entries that are converted to another dtype at once; few enough for a processor's cache.
BLOCK = 2**18


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def wide_copy(first: Tensor, *others: Tensor) -> Tensor:
    """Return a copy of a tensor in float32, or in float64 if one of them all is that.

    For sums in place: a temporary of an embedding matrix takes hundreds of megabytes.
    """
    double = any(each.dtype == torch.float64 for each in (first, *others))
    dtype = torch.float64 if double else torch.float32
    return first.to(dtype, copy=True, memory_format=torch.contiguous_format)


def add_scaled(out: Tensor, other: Tensor, scale: float = 1.0) -> Tensor:
    """Add ``scale * other`` to a contiguous tensor, in place and block by block; return it.

    Of another dtype, `other` would be converted as a whole otherwise.
    """
    parts = (torch.split(each, BLOCK) for each in (out.view(-1), other.flatten()))
    for own, part in zip(*parts, strict=True):
        own.add_(part, alpha=scale)
    return out


def difference(tensor: Tensor, start: Tensor) -> Tensor:
    """Return ``tensor - start`` in float32, or in float64 if one of them has it."""
    return add_scaled(wide_copy(tensor, start), start, -1.0)


def dot(a: Tensor, b: Tensor) -> float:
    """Return the inner product of two tensors as flat vectors, in float64, block by block.

    Args:
        a: Any shape and floating dtype.
        b: The same shape.
    """
    parts = zip(*(torch.split(each.flatten(), BLOCK) for each in (a, b)), strict=True)
    return math.fsum(float(x.double() @ y.double()) for x, y in parts)


def distance(a: Tensor, b: Tensor) -> float:
    """Return the Frobenius norm of ``a - b``, summed in float64, block by block.

    Args:
        a: Any shape and floating dtype.
        b: The same shape.
    """
    parts = zip(*(torch.split(each.flatten(), BLOCK) for each in (a, b)), strict=True)
    norms = (torch.linalg.vector_norm(wide(x) - wide(y), dtype=torch.float64) for x, y in parts)
    return math.sqrt(math.fsum(float(norm) ** 2 for norm in norms))


def alignment_matrix(aligned: Tensor, base: Tensor) -> Tensor:
    """Return ``C = V V^T / ||V||_F`` with ``V = aligned - base``.

    It is no projection: its spectral norm is ``sigma_1(V)^2 / ||V||_F``.

    Args:
        aligned: (out, in), the weight after alignment.
        base: (out, in), the weight before it.

    Returns:
        (out, out); NaN everywhere if the two are equal.
    """
    v = wide(aligned) - wide(base)
    return v @ v.T / v.norm()


def aligned_part(delta: Tensor, aligned: Tensor, base: Tensor) -> Tensor:
    """Return ``C delta`` of `alignment_matrix` without building C, which is (out, out).

    Args:
        delta: (out, k), the change of a weight or the factor B of a LoRA pair.
        aligned: (out, in).
        base: (out, in).

    Returns:
        (out, k); NaN everywhere if `aligned` and `base` are equal.
    """
    v = wide(aligned) - wide(base)
    return v @ (v.T @ wide(delta)) / v.norm()


def rounded_cosine(a: Tensor, b: Tensor) -> float:
    """Return the cosine of two tensors as flat vectors, rounded as in the releases.

    It is 0 if one of them is zero and NaN if one of them has a NaN.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0)
    return round(float(cosine), DECIMALS)
