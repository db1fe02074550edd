"""The steps of DirectionAlign: entries go back to the aligned model where that turns a direction.

Source: Kang et al. (arXiv 2504.09757). The direction is the mean hidden state of harmful prompts
after the first layers; no step moves along a gradient, it only says which entries go back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError

Tensors = Mapping[str, Tensor]


def default_end(layers: int) -> int:
    """Return how many layers count by default: two thirds of them, rounded down."""
    return 2 * layers // 3


@contextmanager
def first_layers(model: Any, end: int) -> Iterator[nn.Module]:
    """Give the decoder with its first `end` layers only, and without its final norm."""
    decoder = model.get_decoder()
    layers, norm = decoder.layers, decoder.norm
    decoder.layers, decoder.norm = layers[:end], nn.Identity()
    try:
        yield decoder
    finally:
        decoder.layers, decoder.norm = layers, norm


def last_states(decoder: nn.Module, batch: Tensors) -> Tensor:
    """Return the hidden state of each row's last token.

    Args:
        decoder: From `first_layers`.
        batch: ``input_ids`` and ``attention_mask``, (rows, tokens), padded on the left.

    Returns:
        (rows, hidden).
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    return decoder(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]


@torch.no_grad()
def mean_state(decoder: nn.Module, batches: Iterable[Tensors]) -> Tensor:
    """Return the mean of `last_states` over all rows: (hidden,)."""
    return torch.cat([last_states(decoder, batch) for batch in batches]).mean(0)


def add_gradients(decoder: nn.Module, batches: Iterable[Tensors], direction: Tensor) -> float:
    """Add to ``.grad`` the gradient of ``-cos(mean state, direction)`` of each batch.

    Returns:
        The mean cosine over the batches.
    """
    cosines = []
    for batch in batches:
        mean = last_states(decoder, batch).mean(0)
        cosine = torch.nn.functional.cosine_similarity(mean, direction.to(mean), dim=0)
        torch.autograd.backward(-cosine)
        cosines.append(float(cosine.detach()))
    return math.fsum(cosines) / max(1, len(cosines))


def candidates(own: Tensors, target: Tensors, gradients: Tensors) -> dict[str, Tensor]:
    """Return the entries whose way to the target goes down the gradient: ``(own - target) g > 0``.

    Args:
        own: Name -> the present weights.
        target: Name -> those to go back to.
        gradients: Name -> gradient; names without one have no candidate.
    """
    return {n: (own[n] - target[n]) * g > 0 for n, g in gradients.items()}


def largest(chosen: Tensors, gradients: Tensors, k: int) -> dict[str, Tensor]:
    """Return those of the chosen entries whose gradient is larger in size than the k-th largest.

    As the comparison is strict, these are k - 1 entries, or fewer if some tie.

    Args:
        chosen: Name -> bool.
        gradients: Name -> gradient.
        k: Counts over all tensors together.

    Raises:
        OneShotError: if fewer than k entries are chosen.
    """
    count = sum(int(mask.sum()) for mask in chosen.values())
    if k > count:
        raise OneShotError(
            f"{k} entries shall go back, but only {count} lie in the right direction; lower "
            "model.recovery_rate."
        )
    # The k largest of each tensor hold the k largest of all.
    sizes = [gradients[n].abs()[mask] for n, mask in chosen.items()]
    best = torch.cat([each.topk(min(k, each.numel())).values for each in sizes])
    threshold = best.topk(k).values[-1]
    return {n: mask & (gradients[n].abs() > threshold) for n, mask in chosen.items()}
