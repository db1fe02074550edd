"""Read the beginning that all rows of a batch share once, not once a row (prefix caching).

A chat template begins every prompt with the same system turn, which is often longer than the user's
request. Its keys and values are computed for one row and copied to the others, so only what differs
is left to compute. The result is that of the whole batch up to rounding. In training, the gradients
of the copies add up in the one row.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oneshot_lit.models.loss import IGNORE_INDEX
from oneshot_lit.strategies.weights import is_sharded

# Fewer tokens saved are not worth a forward pass of its own.
_LEAST_SAVED = 64
# The same for a training step: tokens saved times weights.
_LEAST_SAVED_WORK = 2e9


def shared_prefix(input_ids: Tensor, attention_mask: Tensor) -> int:
    """Return with how many tokens all rows begin; at least one token of each row is left over.

    Args:
        input_ids: (rows, tokens), padded on either side.
        attention_mask: The same shape; 0 at padding.
    """
    most = int(attention_mask.sum(-1).min()) - 1
    if most < 1:
        return 0
    columns = _first(attention_mask) + torch.arange(most, device=input_ids.device)
    starts = input_ids.gather(1, columns)
    differ = (starts != starts[:1]).any(0)
    return int(differ.int().argmax()) if differ.any() else most


@torch.no_grad()
def prefix_cache(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Any:
    """Return the cache of the columns that the shared beginning of the longest row fills.

    In a row with padding on the left, these columns hold the padding and then less of the
    beginning; the rest of it follows in the row's other columns. So the batch keeps its shape, and
    its columns after ``cache.get_seq_length()`` are what is left to compute.

    Args:
        model: A causal language model of transformers, bare or with a PEFT adapter, in eval mode.
        input_ids: (rows, tokens), padded on either side.
        attention_mask: The same shape.

    Returns:
        A `transformers.DynamicCache`; None if sharing saves nothing, or the model keeps a state of
        another kind or its weights in shards.
    """
    length = shared_prefix(input_ids, attention_mask)
    # One of the rows pays for the beginning, and another one for the pass of its own.
    if length * (len(input_ids) - 2) < _LEAST_SAVED or is_sharded(model):
        return None
    decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
    if (cache := _empty_cache(decoder.config, length)) is None:
        return None
    first = _first(attention_mask)
    prefix = input_ids[:1, int(first[0]) :][:, :length]
    decoder.base_model(input_ids=prefix, past_key_values=cache, use_cache=True)
    if cache.get_seq_length() != length:
        return None
    # What stands in the columns of padding does not matter: they are masked.
    positions = (torch.arange(length, device=first.device) - first).clamp_min(0)
    for layer in cache.layers:
        layer.keys, layer.values = (
            each[0][:, positions].transpose(0, 1).contiguous()
            for each in (layer.keys, layer.values)
        )
    return cache


def training_cache(model: Any, batch: dict[str, Tensor]) -> Any:
    """Return the cache of the beginning that all rows share, with its graph.

    Only what comes before each row's labelled tokens is shared, so that every loss is computed in
    its own row. A gradient that flows into the cache is the sum over the rows.

    Args:
        model: A causal language model of transformers, bare or with a PEFT adapter.
        batch: ``input_ids``, ``attention_mask`` and ``labels``, (rows, tokens), padded on the
            right.

    Returns:
        A `transformers.DynamicCache`; None if sharing saves little, if dropout would have to differ
        from row to row, or if the model checkpoints activations, keeps a state of another kind or
        its weights in shards.
    """
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if len(ids) < 2 or not bool(mask[:, 0].all()):
        return None
    labelled = batch["labels"] != IGNORE_INDEX
    first = int(labelled.int().argmax(-1)[labelled.any(-1)].min()) if labelled.any() else 0
    length = min(shared_prefix(ids, mask), first - 1)
    if length < 1 or is_sharded(model):
        return None
    weights = sum(p.numel() for p in model.parameters())
    if length * (len(ids) - 2) * weights < _LEAST_SAVED_WORK or has_dropout(model):
        return None
    decoder = model.get_base_model() if hasattr(model, "get_base_model") else model
    if any(getattr(module, "gradient_checkpointing", False) for module in decoder.modules()):
        return None
    if (cache := _empty_cache(decoder.config, length)) is None:
        return None
    decoder.base_model(input_ids=ids[:1, :length], past_key_values=cache, use_cache=True)
    if cache.get_seq_length() != length:
        return None
    for layer in cache.layers:
        layer.keys, layer.values = (
            each.expand(len(ids), -1, -1, -1) for each in (layer.keys, layer.values)
        )
    return cache


def has_dropout(model: Any) -> bool:
    """Whether dropout is on anywhere."""
    for module in model.modules():
        rate = module.p if isinstance(module, torch.nn.Dropout) else 0.0
        rate = max(rate, float(getattr(module, "attention_dropout", 0.0) or 0.0))
        if module.training and rate > 0:
            return True
    return False


def _first(attention_mask: Tensor) -> Tensor:
    """Return the column of each row's first token, (rows, 1)."""
    return attention_mask.int().argmax(-1, keepdim=True)


def _empty_cache(config: Any, length: int) -> Any:
    """Return a cache whose layers all keep every token of the beginning; None if there is none."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    if config.is_encoder_decoder:
        return None
    cache = DynamicCache(config=config)
    keeps = (
        type(layer) is DynamicLayer
        or (type(layer) is DynamicSlidingWindowLayer and layer.sliding_window > length)
        for layer in cache.layers
    )
    return cache if cache.layers and all(keeps) else None
