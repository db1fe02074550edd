"""The supervised fine-tuning loss as pure functions; every loss on tokens is made of these."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# A label that carries no loss.
IGNORE_INDEX = -100


def token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each labelled token given all tokens before it.

    Args:
        logits: (rows, tokens, vocabulary), or those of labelled tokens alone, (labelled tokens,
            vocabulary), as `labelled_logits` returns them; any floating dtype, computed on in
            float32 or wider.
        labels: (rows, tokens), int64; `IGNORE_INDEX` where a token carries no loss. The first token
            of a row carries none, as nothing predicts it.

    Returns:
        (labelled tokens,) in nats, row by row; float32, or float64 of float64.
    """
    chosen = labelled_logits(logits, labels) if logits.dim() == 3 else logits
    # Only labelled positions are widened: a copy of all logits would be the largest tensor.
    wide = chosen if logits.dtype == torch.float64 else chosen.float()
    return functional.cross_entropy(wide, of_labelled(labels, labels), reduction="none")


def of_labelled(values: Tensor, labels: Tensor) -> Tensor:
    """Return the values of the labelled tokens, in the order of `token_losses`.

    Args:
        values: (rows, tokens), one for each token.
        labels: (rows, tokens); `IGNORE_INDEX` where a token carries no loss.

    Returns:
        (labelled tokens,).
    """
    return values[:, 1:][labels[:, 1:] != IGNORE_INDEX]


def weighted_mean(losses: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean of losses, each as often as its weight says.

    Args:
        losses: (labelled tokens,).
        weights: (labelled tokens,), not negative; all 1 if not given. If all are 0 there is
            nothing to learn, and the mean is 0.

    Returns:
        A scalar; NaN for no losses without weights.
    """
    if weights is None:
        return losses.mean()
    weights = weights.to(losses)
    return (weights * losses).sum() / weights.sum().clamp_min(torch.finfo(losses.dtype).tiny)


def next_token_loss(logits: Tensor, labels: Tensor, token_weights: Tensor | None = None) -> Tensor:
    """Return the weighted mean of `token_losses` over all labelled tokens of a batch, in nats.

    Args:
        logits: (rows, tokens, vocabulary), or (labelled tokens, vocabulary).
        labels: (rows, tokens).
        token_weights: (rows, tokens), how much each token counts; all alike if not given.
    """
    weights = None if token_weights is None else of_labelled(token_weights, labels)
    return weighted_mean(token_losses(logits, labels), weights)


def row_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each row's mean next-token loss over its own labelled tokens, (rows,), in nats.

    Args:
        logits: (rows, tokens, vocabulary).
        labels: (rows, tokens).
    """
    kept = labels[:, 1:] != IGNORE_INDEX
    losses = token_losses(logits, labels)
    each = losses.new_zeros(kept.shape).masked_scatter(kept, losses)
    return each.sum(1) / kept.sum(1).clamp_min(1)


def labelled_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits that predict each labelled token, (labelled tokens, vocabulary).

    Args:
        logits: (rows, tokens, vocabulary), or hidden states, (rows, tokens, features).
        labels: (rows, tokens); `IGNORE_INDEX` where a token carries no loss.
    """
    return logits[:, :-1][labels[:, 1:] != IGNORE_INDEX]


def log_probabilities(logits: Tensor) -> Tensor:
    """Return the log-softmax of logits over their last dimension, in float32 or wider."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.log_softmax(-1)


def kl_divergences(p: Tensor, q: Tensor) -> Tensor:
    """Return KL(p || q) of each token's distribution, in nats.

    Args:
        p: (tokens, vocabulary), logits or log-probabilities.
        q: The same of the other model.

    Returns:
        (tokens,), float32 or wider.
    """
    p, q = log_probabilities(p), log_probabilities(q)
    return (p.exp() * (p - q)).sum(-1)
