"""Tiny random models of several families, prompts for them, and `generate` one by one."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers
from transformers import GenerationConfig

from oneshot_lit.models.decoding.slots import open_slots

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
        tokens = output[0, len(row) :].tolist()
        ends = [i for i, token in enumerate(tokens) if token in stops]
        answers.append(tokens[: ends[0]] if ends else tokens)
    return answers


def in_slots(
    model: Any,
    rows: list[list[int]],
    slots: int,
    max_new_tokens: int,
    stops: list[int] = STOPS,
    feed: int | None = None,
) -> list[list[int]]:
    """The answers by slots that are fed so many prompts at a time."""
    stream = open_slots(model, slots, stops, max_new_tokens, pad_id=0)
    found = []
    feed = feed or slots
    for first in range(0, len(rows), feed):
        for n in range(first, min(first + feed, len(rows))):
            stream.add(n, rows[n])
        found += stream.run()
    found += stream.run(to_the_end=True)
    assert sorted(key for key, _ in found) == list(range(len(rows)))
    # Nothing is held on the accelerator once all is answered.
    assert stream._cache is None
    answers = dict(found)
    return [answers[n] for n in range(len(rows))]
