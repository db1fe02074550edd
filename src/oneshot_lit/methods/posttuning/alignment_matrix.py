"""What SafeLoRA and SafeMERGE share: the matrix of an alignment, and the cosine that decides.

Source: Hsu et al., "Safe LoRA" (arXiv 2405.16833), equations 1 and 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The releases round cosines to so many decimals before they compare them.
DECIMALS = 5


def wide(tensor: Tensor) -> Tensor:
    """Return a tensor in float32, or in float64 if it is that already."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


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
