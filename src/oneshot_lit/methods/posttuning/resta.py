"""RESTA: add the direction from an unaligned model to the aligned one.

Source: Bhardwaj et al., "Language Models are Homer Simpson!" (arXiv 2402.11746).
"""

from __future__ import annotations

import torch
from torch import Tensor

from oneshot_lit.methods.posttuning.alignment_matrix import wide


def resta(tuned: Tensor, aligned: Tensor, unaligned: Tensor, gamma: float) -> Tensor:
    """Return ``tuned + gamma (aligned - unaligned)``; all of one shape."""
    return wide(tuned) + gamma * (wide(aligned) - wide(unaligned))


def dare(delta: Tensor, drop: Tensor, rate: float) -> Tensor:
    """Return a difference without the entries in `drop`, the others divided by ``1 - rate``.

    Args:
        delta: Any shape.
        drop: Which entries go: True or 1, same shape.
        rate: The share of entries that was meant to go, below 1.
    """
    return delta * (1 - drop.to(delta.dtype)) / (1 - rate)


def drop_mask(shape: torch.Size, rate: float, generator: torch.Generator) -> Tensor:
    """Draw which entries go: a tensor of bools."""
    return torch.rand(shape, generator=generator) < rate
