"""Every rule's scores against the plain definition, one candidate at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tiny_llama import tiny_llama
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
)

from experiments.selection.rules import RULES, Evidence
from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import Encoded
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.reference import ReferenceRows, batches_of
from oneshot_lit.models.loss import labelled_logits

CPU = torch.device("cpu")
LENGTHS = [(4, 3), (2, 5), (6, 2), (3, 3)]


def llama() -> Any:
    return tiny_llama(tied=True)


def gpt2() -> Any:
    # Its linear layers keep their weights transposed.
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=24, n_embd=16, n_layer=2, n_head=2, n_positions=32)
    )


SIZES: dict[str, Any] = {
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
}


def gemma2() -> Any:
    # It multiplies its embeddings.
    return Gemma2ForCausalLM(Gemma2Config(**SIZES, sliding_window=32))


def gemma3() -> Any:
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, sliding_window=32))


def encoded() -> list[Encoded]:
    draw = torch.Generator().manual_seed(3)
    return [
        Encoded(
            torch.randint(1, 24, (prompt + answer,), generator=draw).tolist(),
            [False] * prompt + [True] * answer,
        )
        for prompt, answer in LENGTHS
    ]


@pytest.fixture(params=[llama, gpt2, gemma2, gemma3])
def seen(request: pytest.FixtureRequest) -> Evidence:
    return evidence(request.param)


def evidence(make: Callable[[], Any], dtype: torch.dtype = torch.float64) -> Evidence:
    torch.manual_seed(0)
    model, aligned = make().to(dtype).eval(), make().to(dtype).eval()

    def logits(which: Any, batch: Any) -> torch.Tensor:
        output = which(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return labelled_logits(output.logits, batch["labels"])

    rows = batches_of([Encoded([5, 6, 7, 8], [False, False, True, True])], 0, 1, CPU)
    upper = [ReferenceRows(rows, partial(logits, aligned), 2.0)]
    pool = [
        Conversation((Message("user", "x"),), category=name)
        for name in ("fraud", "general", "theft", "general")
    ]
    return Evidence(pool, batches_of(encoded(), 0, 3, CPU), model, upper, seed=7, overlap_k=3)


def gradients(seen: Evidence) -> list[dict[str, torch.Tensor]]:
    """Each candidate's gradients of its own mean loss."""
    found = []
    weights = seen.weights()
    for row in encoded():
        ids = torch.tensor([row.input_ids])
        labels = torch.where(torch.tensor([row.loss_mask]), ids, -100)
        loss = seen.model(input_ids=ids, labels=labels).loss
        parts = torch.autograd.grad(loss, list(weights.values()))
        found.append(dict(zip(weights, parts, strict=True)))
    return found


def test_gradient_match_is_the_inner_product_with_the_upper_gradient(seen: Evidence) -> None:
    upper = {name: torch.zeros_like(p) for name, p in seen.weights().items()}
    for term in seen.upper:
        total = sum(term.divergences(seen.answer_logits))
        parts = torch.autograd.grad(total, list(seen.weights().values()))
        upper = {name: upper[name] + part for name, part in zip(upper, parts, strict=True)}
    expected = [float(sum((g[n] * upper[n]).sum() for n in upper)) for g in gradients(seen)]
    assert RULES["gradient_match"](seen) == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert (seen.forwards, seen.backwards) == (5, 5)


def test_mean_overlap_is_that_of_the_explicit_gradients(seen: Evidence) -> None:
    each = gradients(seen)
    # Of the linear layers, whichever way round they keep their weights.
    linear = [n for n in each[0] if any(k in n for k in ("proj", "mlp", "c_attn", "attn.c"))]
    assert len(linear) in (14, 8)
    expected = []
    for g in each:
        overlaps = []
        for name in linear:
            mean = sum(other[name] for other in each) / len(each)
            lead = torch.linalg.svd(mean)[0][:, :3]
            u, s, _ = torch.linalg.svd(g[name])
            rank = min(3, int((s > s[0] * 1e-9).sum()))
            overlaps.append(float((u[:, :rank].T @ lead).square().sum()) / rank)
        expected.append(sum(overlaps) / len(overlaps))
    assert RULES["mean_overlap"](seen) == pytest.approx(expected, rel=1e-5)


def test_a_layer_that_mixes_the_candidates_is_refused(seen: Evidence) -> None:
    class Flat(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    name = "mlp" if hasattr(seen.model, "transformer") else "up_proj"
    block = seen.model.transformer.h[0] if name == "mlp" else seen.model.model.layers[0].mlp
    setattr(block, name, Flat(getattr(block, name)))
    with pytest.raises(OneShotError, match="does not keep the candidates apart"):
        RULES["gradient_match"](seen)


def mixtral() -> Any:
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=4))


def shifted() -> Any:
    class Shifted(torch.nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward((ids + 1) % self.num_embeddings)

    model = llama()
    model.set_input_embeddings(Shifted(24, 16))
    model.tie_weights()
    return model


def by_hand() -> Any:
    class ByHand(torch.nn.Module):
        def __init__(self, layer: torch.nn.Linear) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(x, self.layer.weight)

    model = llama()
    mlp = model.model.layers[0].mlp
    mlp.up_proj = ByHand(mlp.up_proj)
    return model


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (mixtral, r"mlp\.gate\.weight"),
        (shifted, r"embed_tokens\.weight"),
        (by_hand, r"up_proj\.layer\.weight"),
    ],
)
@pytest.mark.parametrize("rule", ["gradient_match", "mean_overlap"])
def test_weights_without_factors_are_refused(make: Any, name: str, rule: str) -> None:
    with pytest.raises(OneShotError, match=f"{name} is in no plain|the layer of .*{name}"):
        RULES[rule](evidence(make, torch.float32))


def test_losses(seen: Evidence) -> None:
    expected = []
    for row in encoded():
        ids = torch.tensor([row.input_ids])
        labels = torch.where(torch.tensor([row.loss_mask]), ids, -100)
        expected.append(float(seen.model(input_ids=ids, labels=labels).loss))
    assert RULES["highest_loss"](seen) == pytest.approx(expected, rel=1e-6)
    assert RULES["lowest_loss"](seen) == pytest.approx([-loss for loss in expected], rel=1e-6)


def test_rules_that_look_at_no_weights(seen: Evidence) -> None:
    assert RULES["longest"](seen) == [7, 7, 8, 6]
    assert RULES["shortest"](seen) == [-7, -7, -8, -6]
    assert RULES["general_first"](seen) == [0, 1, 0, 1]
    drawn = RULES["random"](seen)
    assert RULES["random"](seen) == drawn
    assert len(set(drawn)) == 4
    seen.seed = 8
    assert RULES["random"](seen) != drawn
    assert seen.forwards == seen.backwards == 0
