"""Greedy answers to a batch of prompts, with less work than a single call of `generate` does.

Chat templates let prompts begin alike, so their common beginning is computed once. Rows whose
answers have ended leave the batch; `generate` alone computes them until the last one ends.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

# A shorter beginning saves less than a pass of its own costs, in tokens.
_LEAST_SAVED = 64


class _HalfEnded(StoppingCriteria):  # type: ignore[misc]
    """End a call of `generate` when half of its rows have ended.

    Each departure copies the cache of the rows that stay, so they do not leave one by one.
    """

    def __init__(self, prompt: int, stops: Tensor) -> None:
        self.prompt, self.stops = prompt, stops

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        ended = _ended(input_ids[:, self.prompt :], self.stops)
        return (2 * ended.sum() >= len(ended)).expand(len(ended))


def rows_can_leave(model: Any) -> bool:
    """Whether a model keeps nothing but keys and values of each row."""
    return _cache_layers(model) <= {DynamicLayer, DynamicSlidingWindowLayer}


def greedy_tokens(
    model: Any, batch: dict[str, Tensor], config: GenerationConfig, stop_ids: list[int]
) -> list[list[int]]:
    """Return the tokens that `generate` gives, except where rounding decides between two.

    Args:
        model: A causal language model of transformers or PEFT for which `rows_can_leave`, whole on
            this process.
        batch: ``input_ids`` and ``attention_mask``, (rows, tokens), padded on the left.
        config: How the answers are generated, with `max_new_tokens`.
        stop_ids: The tokens that end an answer.

    Returns:
        The answer of each row, perhaps with padding behind its end.
    """
    config = copy.deepcopy(config)
    config.return_dict_in_generate = True
    ids, mask = batch["input_ids"], batch["attention_mask"]
    prompt, stops = ids.shape[1], torch.tensor(stop_ids, dtype=ids.dtype, device=ids.device)
    longest = prompt + config.max_new_tokens
    rows, answers = list(range(len(ids))), [list[int]() for _ in ids]
    cache = _common_beginning(model, ids, mask, config)
    while rows:
        config.max_new_tokens = longest - ids.shape[1]
        output = model.generate(
            input_ids=ids,
            attention_mask=mask,
            past_key_values=cache,
            generation_config=config,
            stopping_criteria=[_HalfEnded(prompt, stops)],
        )
        ids, cache = output.sequences, output.past_key_values
        ended = _ended(ids[:, prompt:], stops) | (ids.shape[1] == longest)
        for n in ended.nonzero().flatten().tolist():
            answers[rows[n]] = ids[n, prompt:].tolist()
        left = (~ended).nonzero().flatten()
        rows = [rows[n] for n in left.tolist()]
        if rows and cache is not None:
            cache.batch_select_indices(left)
        ids = ids[left]
        mask = torch.nn.functional.pad(mask[left], (0, ids.shape[1] - mask.shape[1]), value=1)
    return answers


def _ended(answers: Tensor, stops: Tensor) -> Tensor:
    """Return whether each answer holds a stop token, (rows,)."""
    return torch.isin(answers, stops).any(1)


def _cache_layers(model: Any) -> set[type]:
    return {type(layer) for layer in DynamicCache(config=model.config).layers}


def _common_beginning(
    model: Any, ids: Tensor, mask: Tensor, config: GenerationConfig
) -> DynamicCache | None:
    """Return the cache of the first columns of a batch of prompts that begin alike.

    Column c of a row with p tokens of padding holds token c - p of the beginning. So that is
    computed in one row, and moved to the right by p in each; what is left of it stays masked.

    Args:
        model: The model.
        ids: (rows, tokens), padded on the left.
        mask: The same shape.
        config: How answers are generated, with a dictionary as output.

    Returns:
        None where it would not pay, or where a layer keeps a window of the last tokens only.
    """
    (rows, tokens), padding = ids.shape, (mask == 0).sum(1, keepdim=True)
    own = torch.arange(tokens, device=ids.device) + padding
    aligned = ids.gather(1, own.clamp(max=tokens - 1))
    # The last token of each prompt gives the first one of its answer.
    same = (aligned == aligned[:1]).all(0) & (own < tokens - 1).all(0)
    size = int(same.int().cumprod(0).sum())
    # One of the rows pays for the beginning, and another one for the pass of its own.
    if size * (rows - 2) < _LEAST_SAVED or _cache_layers(model) != {DynamicLayer}:
        return None
    one = copy.deepcopy(config)
    one.max_new_tokens = 1
    beginning = aligned[:1, :size]
    cache = model.generate(
        input_ids=beginning, attention_mask=torch.ones_like(beginning), generation_config=one
    ).past_key_values
    if cache is None or cache.get_seq_length() != size:
        return None
    columns = (torch.arange(size, device=ids.device) - padding).clamp(min=0)
    for layer in cache.layers:
        layer.keys = layer.keys[0][:, columns].transpose(0, 1).contiguous()
        layer.values = layer.values[0][:, columns].transpose(0, 1).contiguous()
    return cache
