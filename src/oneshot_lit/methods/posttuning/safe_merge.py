"""SafeMERGE: merge a LoRA adapter with one trained on safety rows where it leaves the alignment.

Source: Djuhera et al. (arXiv 2503.17239). The paper's formula merges the changes of the weights;
the release merges the factors, which adds cross terms. Both are here.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oneshot_lit.methods.posttuning.alignment_matrix import aligned_part, rounded_cosine, wide

# Below it, the norm of what alignment changed counts as zero.
_NOTHING = 1e-9
# LoRA factors: A (r, in) and B (out, r), and the scaling of B A.
Factors = tuple[Tensor, Tensor, float]


def safety_cosine(a: Tensor, b: Tensor, aligned: Tensor, base: Tensor) -> float:
    """Return the rounded cosine of ``C B A`` and ``B A``; 0 where alignment changed nothing."""
    if float((wide(aligned) - wide(base)).norm()) < _NOTHING:
        return 0.0
    return rounded_cosine(aligned_part(b, aligned, base) @ wide(a), wide(b) @ wide(a))


def merge_changes(
    tuned: Factors, safe: Factors, weights: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return factors of ``w_f s_f B_f A_f + w_g s_g B_g A_g``, the paper's formula.

    Args:
        tuned: A (r, in), B (out, r) and scaling of the fine-tuned adapter.
        safe: Those of the safety adapter; its rank may differ.
        weights: ``(w_f, w_g)``.

    Returns:
        A (r_f + r_g, in) and B (out, r_f + r_g), for a scaling of 1.
    """
    (a_f, b_f, s_f), (a_g, b_g, s_g) = tuned, safe
    a = torch.cat([wide(a_f), wide(a_g)])
    return a, torch.cat([weights[0] * s_f * wide(b_f), weights[1] * s_g * wide(b_g)], dim=1)


def merge_factors(
    tuned: Factors,
    safe: Factors,
    weights: tuple[float, float],
    keep: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    density: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return ``sqrt(w_f s_f) A_f + sqrt(w_g s_g) A_g`` and the same of B, as the release does.

    Their product holds the cross terms ``sqrt(w_f s_f w_g s_g) (B_f A_g + B_g A_f)``.

    Args:
        tuned: A (r, in), B (out, r) and scaling of the fine-tuned adapter.
        safe: Those of the safety adapter, of the same rank.
        weights: ``(w_f, w_g)``, neither negative.
        keep: For the release's ``dare_linear``: which entries of A_f, A_g, B_f, B_g stay.
        density: The share of entries that was meant to stay; the kept ones are divided by it.

    Returns:
        A (r, in) and B (out, r), for a scaling of 1.
    """
    (a_f, b_f, s_f), (a_g, b_g, s_g) = tuned, safe
    parts = [wide(each) for each in (a_f, a_g, b_f, b_g)]
    if keep is not None:
        parts = [each * mask / density for each, mask in zip(parts, keep, strict=True)]
    w_f, w_g = math.sqrt(weights[0] * s_f), math.sqrt(weights[1] * s_g)
    return w_f * parts[0] + w_g * parts[1], w_f * parts[2] + w_g * parts[3]
