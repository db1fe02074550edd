"""Which models can answer in refilled slots; the others answer batch by batch with `generate`."""

from __future__ import annotations

import inspect
from collections.abc import Hashable
from typing import Any, Protocol

from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from oneshot_lit.strategies.weights import is_sharded

_NEEDED = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache"}


class AnswerStream(Protocol):
    """Takes prompts at any time and gives answers when they are ready."""

    def add(self, key: Hashable, prompt: list[int]) -> None:
        """Let a prompt wait for its answer."""

    def run(self, to_the_end: bool = False) -> list[tuple[Hashable, list[int]]]:
        """Return keys and tokens of finished answers; of all that wait if `to_the_end`."""


def obstacle(model: Any, do_sample: bool) -> str | None:
    """Return why slots cannot be refilled for this model, or None if they can.

    Args:
        model: A Hugging Face causal language model, bare or with a PEFT adapter.
        do_sample: Whether tokens are drawn.
    """
    if do_sample:
        return "answers are sampled"
    if is_sharded(model):
        return "the weights are sharded, so that all processes must step together"
    base = model
    if hasattr(model, "get_base_model"):
        if any(c.is_prompt_learning for c in model.peft_config.values()):
            return "the adapter puts tokens of its own before the prompt"
        base = model.get_base_model()
    name = type(base).__name__
    if not isinstance(base, GenerationMixin) or base.config.is_encoder_decoder:
        return f"{name} is no decoder with the generation of transformers"
    # A model that prepares its inputs in its own way needs more than tokens, mask and positions.
    if (
        type(base).prepare_inputs_for_generation
        is not GenerationMixin.prepare_inputs_for_generation
    ):
        return f"{name} prepares its inputs in its own way"
    lacking = _NEEDED - set(inspect.signature(base.forward).parameters)
    if lacking:
        return f"{name} takes no {min(lacking)}"
    if not _plain_cache(base.config):
        return f"{name} keeps a state that is no plain cache of keys and values"
    return None


def _plain_cache(config: Any) -> bool:
    """Whether each layer attends to all tokens or to a sliding window, and has its own cache."""
    decoder = config.get_text_config(decoder=True)
    # A chunk begins at a column of the padded batch, which moves when rows join.
    if "chunked_attention" in (getattr(decoder, "layer_types", None) or ()):
        return False
    if getattr(decoder, "attention_chunk_size", None) is not None:
        return False
    layers = DynamicCache(config=config).layers
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)
