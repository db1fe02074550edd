"""Numbers that sum up a spectrum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def cumulative_energy_ratio(singular_values: Tensor, k: int) -> float:
    """Return CER(k): the share of the squared singular values in the `k` largest.

    Args:
        singular_values: (n,), in any order, >= 0.
        k: How many; at least 1. More than n gives 1.

    Returns:
        A share in [0, 1]; NaN for a zero matrix, which has no energy to share.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    energy = singular_values.double().square().sort(descending=True).values
    return float(energy[:k].sum() / energy.sum())


def effective_rank(singular_values: Tensor) -> float:
    """Return the exponential of the entropy of ``s_i / sum s`` (Roy & Vetterli 2007).

    Args:
        singular_values: (n,), >= 0.

    Returns:
        Between 1 and n; 0 for a zero matrix.
    """
    values = singular_values.double()
    total = values.sum()
    if total == 0:
        return 0.0
    return float(torch.special.entr(values / total).sum().exp())


def stable_rank(singular_values: Tensor) -> float:
    """Return ``||g||_F^2 / s_1^2``: between 1 and n; 0 for a zero matrix."""
    energy = singular_values.double().square()
    if energy.sum() == 0:
        return 0.0
    return float(energy.sum() / energy.max())


def summarise(spectra: Sequence[Tensor], k: Sequence[int]) -> dict[str, list[float]]:
    """Return the numbers above for many spectra, and their Frobenius norms.

    Args:
        spectra: (n,) each, of any lengths, >= 0.
        k: For which k the cumulative energy ratio is wanted; at least 1 each.

    Returns:
        ``cer_<k>`` for each k, ``effective_rank``, ``stable_rank`` and ``frobenius_norm`` -> one
        number a spectrum; of a zero matrix NaN, 0, 0 and 0.
    """
    return {
        **{f"cer_{each}": [cumulative_energy_ratio(s, each) for s in spectra] for each in k},
        "effective_rank": [effective_rank(s) for s in spectra],
        "stable_rank": [stable_rank(s) for s in spectra],
        "frobenius_norm": [float(s.double().norm()) for s in spectra],
    }
