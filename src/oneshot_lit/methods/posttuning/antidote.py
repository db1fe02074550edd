"""Antidote: zero the entries that matter most for harmful rows.

Source: Huang et al., "Antidote" (arXiv 2408.09600); the score is that of Wanda (2306.11695).
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneshot_lit.methods.posttuning.alignment_matrix import wide


class InputEnergy:
    """The mean over sequences of the sum over tokens of each squared input of a linear layer.

    Args:
        size: How many inputs the layer has.
        dtype: Of the sums.
    """

    def __init__(self, size: int, dtype: torch.dtype = torch.float32) -> None:
        self.total = torch.zeros(size, dtype=dtype)
        self.sequences = 0

    def add(self, inputs: Tensor, mask: Tensor) -> None:
        """Count a batch.

        Args:
            inputs: (rows, tokens, size), what the layer gets.
            mask: (rows, tokens), 0 for padding.
        """
        own = (wide(inputs) * mask.unsqueeze(-1)).square().sum((0, 1))
        self.total += own.to(self.total)
        self.sequences += len(inputs)

    @property
    def mean(self) -> Tensor:
        """The score of each input: (size,)."""
        return self.total / max(1, self.sequences)


def harmful_entries(weight: Tensor, energy: Tensor | None, ratio: float) -> Tensor:
    """Return which entries of a weight go: the largest ``|W_ij| sqrt(a_j)`` of each row.

    Args:
        weight: (out, in).
        energy: (in,), from `InputEnergy`; without it, the size of the entry alone decides.
        ratio: Of each row, all but ``int(in * (1 - ratio))`` entries go. As this rounds down, a
            short row loses more than the ratio, and any ratio above 0 takes an entry of each row.

    Returns:
        (out, in), bool. Of entries that tie, the later ones go.
    """
    score = wide(weight).abs()
    if energy is not None:
        score = score * energy.to(score).sqrt()
    kept = int(weight.shape[1] * (1 - ratio))
    order = score.argsort(dim=1, stable=True)
    gone = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
    return gone.scatter_(1, order[:, kept:], True)
