"""Greedy answers to a batch of prompts whose rows leave it when their answers have ended.

A single call of `generate` computes all rows until the last one ends.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig, StoppingCriteria
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer


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
    layers = {type(layer) for layer in DynamicCache(config=model.config).layers}
    return layers <= {DynamicLayer, DynamicSlidingWindowLayer}


def greedy_tokens(
    model: Any,
    batch: dict[str, Tensor],
    config: GenerationConfig,
    stop_ids: list[int],
    cache: DynamicCache | None = None,
) -> list[list[int]]:
    """Return the tokens that `generate` gives, except where rounding decides between two.

    Args:
        model: A causal language model of transformers or PEFT for which `rows_can_leave`, whole on
            this process.
        batch: ``input_ids`` and ``attention_mask``, (rows, tokens), padded on the left.
        config: How the answers are generated, with `max_new_tokens`.
        stop_ids: The tokens that end an answer.
        cache: What is computed of the batch already, see `prefix_cache`.

    Returns:
        The answer of each row, perhaps with padding behind its end.
    """
    config = copy.deepcopy(config)
    config.return_dict_in_generate = True
    ids, mask = batch["input_ids"], batch["attention_mask"]
    prompt, stops = ids.shape[1], torch.tensor(stop_ids, dtype=ids.dtype, device=ids.device)
    longest = prompt + config.max_new_tokens
    rows, answers = list(range(len(ids))), [list[int]() for _ in ids]
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
