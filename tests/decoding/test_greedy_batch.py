"""Batches whose beginning is computed once, and which rows leave, answer like `generate`."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from models import FAMILIES, STOPS, VOCABULARY, build, in_batches, one_by_one, prompts

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_generation
from oneshot_lit.models import generation
from oneshot_lit.models.generation import Decoding, generate_tokens

BEGINNING = [8 + (7 * n) % 80 for n in range(24)]


def alike(count: int, longest: int = 12) -> list[list[int]]:
    """Prompts with one beginning, which ends within one of them and is all but one of another."""
    draw = random.Random(1)
    rows = [
        BEGINNING + [draw.randrange(8, VOCABULARY) for _ in range(draw.randint(1, longest))]
        for _ in range(count - 2)
    ]
    return [*rows, BEGINNING[:20], BEGINNING + [9] * 40]


def computed(model: Any, rows: list[list[int]], steps: int) -> int:
    """Return how many tokens the model computes to answer a batch."""
    sizes: list[int] = []
    hook = lambda module, inputs, output: sizes.append(output.shape[:2].numel())  # noqa: E731
    handle = model.get_input_embeddings().register_forward_hook(hook)
    batch = pad_generation([Encoded(row, []) for row in rows], 0)
    generate_tokens(model, batch, STOPS, Decoding(steps), 0)
    handle.remove()
    return sum(sizes)


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_begin_alike_have_the_answers_of_generate(family: str) -> None:
    model, rows = build(family), alike(13)
    expected = one_by_one(model, rows, 20)
    assert len({len(answer) for answer in expected}) > 3
    for size in (2, 5, 13):
        assert in_batches(model, rows, size, 20) == expected


def test_equal_prompts() -> None:
    model = build("llama")
    assert in_batches(model, [BEGINNING] * 5, 5, 9) == one_by_one(model, [BEGINNING] * 5, 9)


def test_the_common_beginning_is_computed_once() -> None:
    model, rows = build("llama"), [[*BEGINNING, n, 9] for n in range(10, 20)]
    # The beginning once, and the two tokens behind it of each row.
    assert computed(model, rows, 1) == 24 + 10 * 2
    # Of few rows or short beginnings everything is computed.
    assert computed(model, rows[:3], 1) == 3 * 26
    assert computed(model, [row[20:] for row in rows], 1) == 10 * 6
    # A window holds the last tokens only.
    assert computed(build("mistral_window"), rows, 1) == 10 * 26


def test_ended_rows_leave() -> None:
    model, rows = build("llama"), prompts(32, longest=4)
    lengths = sorted(len(answer) for answer in one_by_one(model, rows, 40))
    assert lengths[16] < 20
    assert lengths[-1] == 40
    steps = computed(model, rows, 40) - computed(model, rows, 1)
    # At most half of the rows are computed after half have ended.
    assert steps <= 32 * (lengths[16] + 1) + 16 * (40 - lengths[16])


def test_sampled_answers_and_those_that_end_with_a_text_come_from_generate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(generation, "greedy_tokens", lambda *_: pytest.fail("must not be called"))
    model = build("llama")
    batch = pad_generation([Encoded(row, []) for row in prompts(4)], 0)
    torch.manual_seed(0)
    drawn = generate_tokens(model, batch, STOPS, Decoding(6, do_sample=True), 0)
    torch.manual_seed(0)
    config = Decoding(6, do_sample=True).generation_config(STOPS, 0)
    output = model.generate(**batch, generation_config=config)
    assert drawn == output[:, batch["input_ids"].shape[1] :].tolist()
    generate_tokens(model, batch, STOPS, Decoding(6), 0, max_time=60.0)
