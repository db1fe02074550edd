"""Tiny random models of several families, prompts for them, and `generate` one by one."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_generation
from oneshot_lit.models.generation import Decoding, generate_tokens

VOCABULARY = 97
# So many ends that random weights end their answers at very different lengths.
STOPS = list(range(2, 8))
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 256,
    # Wide enough that answers do not repeat one token.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama_tied": ("Llama", {"tie_word_embeddings": True}),
    "llama_eager": ("Llama", {"attn_implementation": "eager"}),
    "mistral_window": ("Mistral", {"sliding_window": 6}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    # Untied: tied, it repeats each token, whose embedding it scales up.
    "gemma2_window": (
        "Gemma2",
        {
            "sliding_window": 6,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "tie_word_embeddings": False,
        },
    ),
}


def build(family: str) -> Any:
    torch.manual_seed(0)
    name, more = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more})
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


def prompts(count: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    return [
        [draw.randrange(8, VOCABULARY) for _ in range(draw.randint(1, longest))]
        for _ in range(count)
    ]


@torch.no_grad()
def one_by_one(
    model: Any, rows: list[list[int]], max_new_tokens: int, stops: list[int] = STOPS
) -> list[list[int]]:
    """The answers up to their end, by `generate`."""
    options = GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=0)
    answers = []
    for row in rows:
        ids = torch.tensor([row])
        mask = torch.ones_like(ids)
        output = model.generate(input_ids=ids, attention_mask=mask, generation_config=options)
        answers.append(_until_end(output[0, len(row) :].tolist(), stops))
    return answers


@torch.no_grad()
def in_batches(
    model: Any, rows: list[list[int]], size: int, max_new_tokens: int, stops: list[int] = STOPS
) -> list[list[int]]:
    """The answers up to their end, in batches sorted by length, put back in order."""
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    answers: dict[int, list[int]] = {}
    for first in range(0, len(order), size):
        part = order[first : first + size]
        batch = pad_generation([Encoded(rows[n], []) for n in part], 0)
        tokens = generate_tokens(model, batch, stops, Decoding(max_new_tokens), 0)
        answers |= zip(part, tokens, strict=True)
    return [_until_end(answers[n], stops) for n in range(len(rows))]


def _until_end(tokens: list[int], stops: list[int]) -> list[int]:
    ends = [i for i, token in enumerate(tokens) if token in stops]
    return tokens[: ends[0]] if ends else tokens
