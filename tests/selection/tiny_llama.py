"""A random Llama of two layers, for the tests of this folder."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def tiny_llama(
    seed: int = 0, vocabulary: int = 24, groups: int = 1, tied: bool = False
) -> LlamaForCausalLM:
    """Return it; `groups` query heads share each of its two heads of keys and values."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2 * groups,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    return LlamaForCausalLM(config)
