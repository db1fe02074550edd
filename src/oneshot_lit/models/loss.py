"""The supervised fine-tuning loss as a pure function."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of each labelled token given all tokens before it.

    Args:
        logits: (rows, tokens, vocabulary), any floating dtype; computed on in float32 or wider.
        labels: (rows, tokens), int64; `IGNORE_INDEX` where a token carries no loss.

    Returns:
        A scalar: the mean over all labelled tokens of the batch, in nats.
    """
    # Labels move instead of logits, and only labelled positions are widened: a copy of all logits
    # would be the largest tensor of a step.
    targets = functional.pad(labels, (0, 1), value=IGNORE_INDEX)[:, 1:].reshape(-1)
    kept = (targets != IGNORE_INDEX).nonzero().squeeze(1)
    chosen = logits.reshape(-1, logits.shape[-1]).index_select(0, kept)
    wide = chosen if logits.dtype == torch.float64 else chosen.float()
    return functional.cross_entropy(wide, targets[kept])
