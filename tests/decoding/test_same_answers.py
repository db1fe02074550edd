"""Sorted batches give the tokens of `generate` on one prompt at a time, whatever their size."""

from __future__ import annotations

import random

import pytest
import torch
from models import FAMILIES, STOPS, build, in_batches, one_by_one, prompts
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.microworld.splits import load_split
from oneshot_lit.models.chat_format import stop_token_ids
from oneshot_lit.models.loading import load_tokenizer

SIZES = (1, 3, 7, 64)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.slow
def test_families(family: str) -> None:
    model, rows = build(family), prompts(23)
    expected = one_by_one(model, rows, 24)
    lengths = {len(answer) for answer in expected}
    assert len(lengths) > 5, "the answers end at mixed lengths"
    assert 24 in lengths or max(lengths) > 12
    for size in SIZES:
        assert in_batches(model, rows, size, 24) == expected, size


@pytest.mark.parametrize("family", ["llama", "mistral_window", "gemma2_window"])
@pytest.mark.slow
def test_answers_much_longer_than_their_prompts(family: str) -> None:
    model, rows = build(family), prompts(9, longest=5)
    for size in (2, 4):
        assert in_batches(model, rows, size, 70, [2]) == one_by_one(model, rows, 70, [2])


def test_an_adapter_counts() -> None:
    bare, model = build("llama"), build("llama")
    model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.eval()
    rows = prompts(11)
    expected = one_by_one(model, rows, 16)
    assert expected != one_by_one(bare, rows, 16)
    for size in SIZES:
        assert in_batches(model, rows, size, 16) == expected
    with model.disable_adapter():
        assert in_batches(model, rows, 3, 16) == one_by_one(bare, rows, 16)


@pytest.mark.slow
def test_the_shipped_model_on_its_prompts() -> None:
    model = AutoModelForCausalLM.from_pretrained("checkpoints/small", dtype=torch.float32).eval()
    tokenizer = load_tokenizer("checkpoints/small")
    stops = stop_token_ids(tokenizer, model.generation_config)
    rows = [
        encode_conversation(tokenizer, row, for_generation=True).input_ids
        for split in ("harmful_heldout", "near_miss_heldout", "reverse_heldout")
        for row in load_split(split)[:20]
    ]
    random.Random(0).shuffle(rows)
    expected = one_by_one(model, rows, 24, stops)
    for size in SIZES:
        assert in_batches(model, rows, size, 24, stops) == expected


@pytest.mark.parametrize("size", SIZES)
def test_edges(size: int) -> None:
    model, rows = build("llama"), prompts(9)
    assert in_batches(model, rows, size, 1) == one_by_one(model, rows, 1)
    assert in_batches(model, rows[:1], size, 9) == one_by_one(model, rows[:1], 9)
    assert in_batches(model, [], size, 9) == []
    # Every token ends an answer: all are empty.
    assert in_batches(model, rows, size, 9, list(range(97))) == [[]] * 9
    # A first token that ends some answers only.
    first = [answer[0] for answer in one_by_one(model, rows, 1, [])]
    answers = in_batches(model, rows, size, 9, [first[0], first[4]])
    assert answers == one_by_one(model, rows, 9, [first[0], first[4]])
    assert answers[0] == answers[4] == []


def test_ended_rows_do_not_run_out_of_positions() -> None:
    # Learned positions: a row that has ended must not run on beyond the table.
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "initializer_range": 0.3}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=97, **sizes)).eval()
    rows = prompts(12, longest=16)
    assert in_batches(model, rows, 5, 16, [5, 9]) == one_by_one(model, rows, 16, [5, 9])
    # All 32 positions are taken by the longest, while the others end before.
    ends = [answer[3] for answer in one_by_one(model, prompts(4, 16), 16, [])]
    assert in_batches(model, rows, 12, 16, ends) == one_by_one(model, rows, 16, ends)


def test_bfloat16_runs() -> None:
    model = build("llama").to(torch.bfloat16)
    answers = in_batches(model, prompts(9), 4, 12)
    assert all(len(answer) <= 12 and not set(answer) & set(STOPS) for answer in answers)
