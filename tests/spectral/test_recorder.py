"""Factors of a layer's gradient against the gradient that torch gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from oneshot_lit.spectral.recorder import FactorRecorder

SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("model_class", "config_class"),
    [
        (LlamaForCausalLM, LlamaConfig),
        (Gemma2ForCausalLM, Gemma2Config),
        (Gemma3ForCausalLM, Gemma3TextConfig),
    ],
)
def test_factors_make_the_gradient(model_class: Any, config_class: Any, tied: bool) -> None:
    torch.manual_seed(0)
    model = model_class(config_class(**SIZES, tie_word_embeddings=tied)).double().eval()
    weights = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    recorder = FactorRecorder(weights)
    recorder.attach(model)
    # The padding token as one of the text's own.
    ids = torch.tensor([[3, 0, 5, 7, 3], [9, 11, 2, 0, 4]])
    model(input_ids=ids, labels=ids).loss.backward()
    factors = recorder.factors()
    assert set(factors) == set(weights)
    for name, (right, left) in factors.items():
        if left.dtype == torch.long:
            left = torch.nn.functional.one_hot(left, 24).to(right.dtype)
        # Logits and rotations may be in float32.
        close = weights[name].grad.abs().max() * 1e-4
        assert torch.allclose(left.mT @ right, weights[name].grad, atol=float(close)), name


def test_tokens_with_equal_inputs_count_as_one() -> None:
    torch.manual_seed(0)
    sizes = {**SIZES, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=False)).double().eval()
    weights = {n: p for n, p in model.named_parameters() if "layers.1" in n and p.ndim == 2}
    recorder = FactorRecorder(weights)
    recorder.attach(model)
    # One beginning of three tokens; the fourth row goes on like the second, the last is another.
    ids = [[3, 4, 5, 7, 3], [3, 4, 5, 2, 4], [3, 4, 5, 9, 9], [3, 4, 5, 2, 8], [4, 3, 5, 9, 9]]
    batch = torch.tensor(ids)
    model(input_ids=batch, labels=batch).loss.backward()
    # The last tokens predict nothing, but their keys and values have no gradient either.
    for name, (right, left) in recorder.factors().items():
        assert len(right) == len(left) == 3 + 3 + 4, name
        assert torch.allclose(left.mT @ right, weights[name].grad, rtol=1e-6, atol=1e-12), name
