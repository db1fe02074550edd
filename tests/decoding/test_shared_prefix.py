"""What all prompts begin with is read once, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models import FAMILIES, build, in_batches, one_by_one, prompts
from peft import LoraConfig, get_peft_model

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_generation, pad_training
from oneshot_lit.models.shared_prefix import prefix_cache, shared_prefix

SYSTEM = [9 + (7 * i) % 80 for i in range(20)]


def with_system(count: int, longest: int = 40) -> list[list[int]]:
    return [SYSTEM + row for row in prompts(count, longest)]


def padded(rows: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    pad: Any = pad_generation if side == "left" else pad_training
    batch: dict[str, torch.Tensor] = pad([Encoded(r, [False] * len(r)) for r in rows], 0)
    return batch


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    ("rows", "length"),
    [
        ([[3, 4, 5, 6], [3, 4, 7]], 2),
        # One token of each row is left over.
        ([[3, 4, 5], [3, 4]], 1),
        ([[3, 4, 5], [3, 4, 5]], 2),
        ([[3], [3, 4]], 0),
        ([[8, 4, 5], [3, 4, 5]], 0),
        ([[3, 4, 5, 6]], 3),
    ],
)
def test_how_much_is_shared(rows: list[list[int]], length: int, side: str) -> None:
    batch = padded(rows, side)
    assert shared_prefix(batch["input_ids"], batch["attention_mask"]) == length


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_answers_from_less_work(family: str) -> None:
    model, rows = build(family), with_system(11)
    expected = one_by_one(model, rows, 12)
    read: list[torch.Size] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, x: read.append(x[0].shape))
    assert in_batches(model, rows, 11, 12) == expected
    longest = max(map(len, rows))
    # A window of six tokens does not keep the beginning.
    shares = "window" not in family
    assert read[:2] == ([(1, 20), (11, longest - 20)] if shares else [(11, longest), (11, 1)])


def test_a_window_that_keeps_the_beginning() -> None:
    model, rows = build("gemma2_window"), with_system(7, longest=12)
    model.config.sliding_window = 24
    for layer in model.model.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 24
    batch = padded(rows, "left")
    assert prefix_cache(model, batch["input_ids"], batch["attention_mask"]) is not None
    assert in_batches(model, rows, 7, 16) == one_by_one(model, rows, 16)


def test_under_an_adapter() -> None:
    model = get_peft_model(build("llama"), LoraConfig(r=4, target_modules="all-linear")).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    rows = with_system(9)
    assert in_batches(model, rows, 4, 12) == one_by_one(model, rows, 12)


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_logits_in_float64(side: str) -> None:
    model, rows = build("llama").double(), with_system(6)
    batch = padded(rows, side)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    whole = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    cache = prefix_cache(model, ids, mask)
    length = cache.get_seq_length()
    rest = model(
        input_ids=ids[:, length:],
        attention_mask=mask,
        position_ids=positions[:, length:],
        past_key_values=cache,
    ).logits
    used = mask[:, length:].bool()
    torch.testing.assert_close(rest[used], whole[:, length:][used], rtol=0, atol=1e-12)


def test_where_nothing_is_gained() -> None:
    model = build("llama")
    for rows in ([SYSTEM], prompts(5), [SYSTEM[:7] + row for row in prompts(5)], with_system(4)):
        batch = padded(rows, "left")
        assert prefix_cache(model, batch["input_ids"], batch["attention_mask"]) is None


def test_a_model_with_another_state() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    model = MambaForCausalLM(MambaConfig(vocab_size=97, **sizes)).eval()
    rows = [[*SYSTEM, 30, 31], [*SYSTEM, 32, 33]]
    assert in_batches(model, rows, 2, 6) == one_by_one(model, rows, 6)
