"""General ability as pure functions: perplexity on a text, divergence from another model."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from oneshot_lit.models.loss import kl_divergences

# Lands in the results; another way of measuring gets another number.
VERSION = "1"
WINDOW, STRIDE = 512, 256
# Positions at once: with a vocabulary of 100,000, float32 copies of one model's take 100 MB.
_CHUNK = 256


def windows(tokens: int, window: int = WINDOW, stride: int = STRIDE) -> Iterator[tuple[int, ...]]:
    """Yield the parts of a text that is longer than a model's context.

    Each token is scored once, in the window where most tokens precede it.

    Args:
        tokens: Length of the text.
        window: Tokens a window.
        stride: Tokens from the start of a window to the next, fewer than `window`.

    Yields:
        Start, stop and the first token that is scored, as places in the text.
    """
    if not 0 < stride < window:
        raise ValueError(f"a stride of {stride} does not fit a window of {window}")
    scored = 0
    for start in range(0, tokens, stride):
        stop = min(start + window, tokens)
        yield start, stop, scored
        if stop == tokens:
            return
        scored = stop


def text_scores(nats: float, tokens: int, size: int) -> dict[str, float]:
    """Return the ``perplexity`` of a token, and ``bits_per_byte``, which no tokenizer changes.

    Args:
        nats: Sum of the losses of the scored tokens.
        tokens: How many these are.
        size: Their bytes in UTF-8.
    """
    return {"perplexity": math.exp(nats / tokens), "bits_per_byte": nats / math.log(2) / size}


def divergence_sum(p: Tensor, q: Tensor) -> float:
    """Return the sum of KL(p || q) over positions, in nats; exactly 0 where both are equal.

    Args:
        p: (positions, vocabulary), logits of the original; computed on in float32 or wider.
        q: The same of the other model.
    """
    parts = zip(torch.split(p, _CHUNK), torch.split(q, _CHUNK), strict=True)
    return sum(float(kl_divergences(*part).sum(dtype=torch.float64)) for part in parts)
