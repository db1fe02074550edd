"""The pure steps of SEAL: the rows' weights, its two losses, and the choice of rows.

Source: Shen et al., "SEAL" (arXiv 2410.07471). A selector holds one logit for each row of the
user's data. The model learns safe rows and weighted user rows; the selector lowers the weight of
rows whose loss is high under that model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Activation = Literal["softmax", "sigmoid"]
# Where each logit starts: all weights are then 1, or nearly so.
STARTS: dict[str, float] = {"softmax": 0.1, "sigmoid": -1e-4}


def row_weights(logits: Tensor, activation: Activation) -> Tensor:
    """Return the weight of each row: ``N softmax(logits)``, or ``2 sigmoid(logits)``.

    Args:
        logits: (N,), one for each row of the user's data.
        activation: Which of the two.

    Returns:
        (N,); softmax weights add up to N.
    """
    if activation == "softmax":
        return len(logits) * logits.softmax(0)
    return 2 * logits.sigmoid()


def upper_weight(start: float, decay: float, epoch: int) -> float:
    """Return the weight of the safe rows in an epoch, counted from 0: it falls by `decay` each."""
    return start - decay * epoch


def mean_part(losses: Tensor, count: int, weights: Tensor | None = None) -> Tensor:
    """Return the part that some rows of a step have in ``mean_i(p_i l_i)`` over all its rows.

    The parts add up to the mean, so a step may be computed a few rows at a time.

    Args:
        losses: (rows,), token means in nats.
        count: Rows of the whole step.
        weights: (rows,); no gradient flows into them. All 1 if not given.
    """
    weighted = losses if weights is None else weights.detach().to(losses) * losses
    return weighted.sum() / count


def mixed_loss(safe: Tensor, user: Tensor, weights: Tensor, upper: float) -> Tensor:
    """Return the model's loss: ``upper mean(l_safe) + (1 - upper) mean(p_i l_i)``.

    Args:
        safe: (safe rows of the step,), token means in nats.
        user: (user rows of the step,).
        weights: p_i of these user rows; no gradient flows into them.
        upper: Weight of the safe rows.
    """
    own, others = mean_part(safe, len(safe)), mean_part(user, len(user), weights)
    return upper * own + (1 - upper) * others


def selector_loss(
    logits: Tensor, rows: Sequence[int], losses: Tensor, activation: Activation
) -> Tensor:
    """Return the selector's loss ``mean_i(p_i l_i)`` over the user rows of a step.

    Args:
        logits: (N,); its gradient goes through the softmax over all of them.
        rows: Places of the step's rows among the N.
        losses: (rows of the step,), from before the model's step; no gradient flows into them.
        activation: See `row_weights`.
    """
    chosen = row_weights(logits, activation)[list(rows)]
    return (chosen * losses.detach().to(chosen)).mean()


def selector_gradient(
    logits: Tensor, rows: Sequence[int], losses: Tensor, activation: Activation
) -> Tensor:
    """Return the gradient of `selector_loss` by all logits, (N,)."""
    own = logits.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(selector_loss(own, rows, losses, activation), own)
    return gradient


def rows_to_keep(topp: float, rows: int) -> int:
    """Return how many rows a share of them is; rounded down, as floats are, like the release."""
    return int(topp * rows)


def largest(scores: Sequence[float], count: int) -> list[int]:
    """Return the places of the largest scores, best first; of equal scores the earlier place."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def overlap_with_low_losses(chosen: Sequence[int], losses: Sequence[float]) -> float:
    """Return the share of the chosen rows that a plain ranking by loss chooses, too.

    It takes as many rows, those with the lowest loss. Two choices of m of N rows that have nothing
    to do with each other share m / N on average.
    """
    plain = largest([-loss for loss in losses], len(chosen))
    return len(set(chosen) & set(plain)) / len(chosen)
