"""Configs of publicly known architectures, so that their memory is known without a download.

Only what decides the shapes: Qwen2.5 0.5B, 7B, 14B and 32B; Llama 3.2 1B and 3B; Llama 3 8B and
70B; Llama 2 13B.
"""

from __future__ import annotations

from typing import Any


def _shape(
    kind: str,
    hidden: int,
    layers: int,
    heads: int,
    key_value: int,
    inside: int,
    words: int,
    tied: bool = False,
) -> dict[str, Any]:
    return {
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value,
        "intermediate_size": inside,
        "vocab_size": words,
        "tie_word_embeddings": tied,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "qwen-0.5b": _shape("qwen2", 896, 24, 14, 2, 4864, 151936, tied=True),
    "llama-1b": _shape("llama", 2048, 16, 32, 8, 8192, 128256, tied=True),
    "llama-3b": _shape("llama", 3072, 28, 24, 8, 8192, 128256, tied=True),
    "qwen-7b": _shape("qwen2", 3584, 28, 28, 4, 18944, 152064),
    "llama-8b": _shape("llama", 4096, 32, 32, 8, 14336, 128256),
    "llama-13b": _shape("llama", 5120, 40, 40, 40, 13824, 32000),
    "qwen-14b": _shape("qwen2", 5120, 48, 40, 8, 13824, 152064),
    "qwen-32b": _shape("qwen2", 5120, 64, 40, 8, 27648, 152064),
    "llama-70b": _shape("llama", 8192, 80, 64, 8, 28672, 128256),
}
