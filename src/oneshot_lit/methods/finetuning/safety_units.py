"""Safety-critical units: hidden units whose inputs vary on safety rows more than on others.

Source: Li and Kim, "Superficial Safety Alignment Hypothesis" (arXiv 2410.10862). No code of it was
released, so what its text leaves open are options here: which tokens count, whether scores are
scaled, and the order in which the groups are filled. A unit is an input of ``down_proj`` or of
``o_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from oneshot_lit.methods.about import About

ABOUT = About(
    name="SSAH freezing",
    stage="during fine-tuning",
    needs="refused rows and other rows",
    paper="2410.10862",
    agreement="formula only; no code of it was released",
    config="defence/ssah.yaml",
)
# What a unit is for: safety, usefulness, both, or neither.
SAFETY, UTILITY, COMPLEX, REDUNDANT = "safety", "utility", "complex", "redundant"
GROUPS = (REDUNDANT, SAFETY, UTILITY, COMPLEX)
Over = Literal["tokens", "sequences"]


class InputVariance:
    """The variance of each input of a linear layer.

    Args:
        size: How many inputs the layer has.
        over: ``tokens``: over all tokens of all sequences. ``sequences``: over the sequences at
            each position, summed over the positions; a position counts the sequences that reach it.
    """

    def __init__(self, size: int, over: Over = "tokens") -> None:
        self.over = over
        self.count = torch.zeros(0, 1, dtype=torch.float64)
        self.mean = torch.zeros(0, size, dtype=torch.float64)
        self.squares = torch.zeros(0, size, dtype=torch.float64)

    def add(self, inputs: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            inputs: (rows, tokens, size), what the layer gets.
            mask: (rows, tokens), 0 for padding.
        """
        x, own = inputs.detach().double().cpu(), mask.bool().cpu()
        for row, real in zip(x, own, strict=True):
            tokens = row[real]
            # Each row of `tokens` is one observation of a position, or all are of the same one.
            groups = tokens.unsqueeze(1) if self.over == "sequences" else tokens.unsqueeze(0)
            self._grow(len(groups))
            n = self.count[: len(groups)]
            k = groups.shape[1]
            mean = groups.mean(1)
            shift = mean - self.mean[: len(groups)]
            # Chan's rule for joining two samples: exact also where the mean is far from zero.
            spread = (groups - mean.unsqueeze(1)).square().sum(1)
            self.squares[: len(groups)] += spread + shift.square() * n * k / (n + k)
            self.mean[: len(groups)] += shift * k / (n + k)
            self.count[: len(groups)] += k

    def _grow(self, positions: int) -> None:
        if (missing := positions - len(self.count)) > 0:
            grown = (
                torch.cat([each, each.new_zeros(missing, each.shape[1])])
                for each in (self.count, self.mean, self.squares)
            )
            self.count, self.mean, self.squares = grown

    @property
    def variance(self) -> Tensor:
        """The variance of each input, with ``n - 1``: (size,), float64."""
        return (self.squares / (self.count - 1).clamp(min=1)).sum(0)


def unit_scores(variance: Tensor, weight: Tensor) -> Tensor:
    """Return ``variance_j ||W[:, j]||^2`` of each unit: (in,), float64.

    Args:
        variance: (in,), from `InputVariance`.
        weight: (out, in), of the layer that the units go into.
    """
    return variance * weight.detach().double().cpu().square().sum(0)


def label_units(safety: Tensor, utility: Tensor, counts: Mapping[str, int]) -> list[str]:
    """Return the group of each unit.

    First the redundant units, with the smallest sum of both scores; of the others those with the
    largest ``safety - utility`` are for safety, those with the smallest for utility; the rest is
    complex.

    Args:
        safety: (units,), scores on safety rows.
        utility: (units,), scores on other rows.
        counts: How many units are ``redundant``, ``safety`` and ``utility``.
    """
    labels = [COMPLEX] * len(safety)
    free = (safety + utility).argsort(stable=True).tolist()
    for unit in free[: counts[REDUNDANT]]:
        labels[unit] = REDUNDANT
    rest = sorted(free[counts[REDUNDANT] :], key=lambda unit: -float(safety[unit] - utility[unit]))
    for unit in rest[: counts[SAFETY]]:
        labels[unit] = SAFETY
    for unit in rest[counts[SAFETY] :][::-1][: counts[UTILITY]]:
        labels[unit] = UTILITY
    return labels


def frozen_units(labels: list[str], safety: Tensor, share: float) -> list[int]:
    """Return the units to freeze, in order: all for safety, and of the complex the best ones.

    Args:
        labels: From `label_units`.
        safety: (units,), scores on safety rows.
        share: Of all units, as many complex ones are added, rounded to the nearest number.
    """
    complex_units = [unit for unit, label in enumerate(labels) if label == COMPLEX]
    best = sorted(complex_units, key=lambda unit: -float(safety[unit]))
    chosen = best[: round(share * len(labels))]
    return sorted([unit for unit, label in enumerate(labels) if label == SAFETY] + chosen)
