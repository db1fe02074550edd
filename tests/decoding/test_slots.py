"""The scheduler: no prompt lost, none twice, and the cache no wider than needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import build, in_slots, one_by_one, prompts

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.decoding.backends import obstacle
from oneshot_lit.models.decoding.slots import Slots

STOP = 0


class Counting:
    """A model that counts down from each prompt's last token to 0, which ends the answer.

    It reads the cache, in which each layer holds the tokens themselves, so that a row in a wrong
    place, a wrong mask or a wrong position gives a wrong answer or fails.
    """

    def __init__(self, longest: int) -> None:
        self.longest, self.widths, self.rows, self.room = longest, [0], [0], 1000

    def __call__(self, input_ids, attention_mask, position_ids, past_key_values, use_cache) -> Any:
        states = input_ids[:, None, :, None].float()
        seen, _ = past_key_values.update(states, states, 0)
        self.widths.append(seen.shape[-2])
        self.rows.append(len(input_ids))
        # Ended rows, too, must stay within a table of learned positions.
        assert position_ids.max() < self.room
        assert attention_mask.shape == (len(input_ids), seen.shape[-2])
        for row in range(len(input_ids)):
            tokens = seen[row, 0, attention_mask[row].bool(), 0]
            assert attention_mask[row].diff().ge(0).all()
            # A prompt is its own length counted up, and what follows counts down.
            if input_ids[row, -1] > 0:
                peak = int(tokens.argmax()) + 1
                assert tokens[:peak].tolist() == list(range(1, peak + 1))
                assert tokens[peak:].tolist() == list(range(peak - 1, 0, -1))[: len(tokens) - peak]
                assert int(position_ids[row, -1]) == len(tokens) - 1
        logits = torch.nn.functional.one_hot((input_ids - 1).clamp_min(0), self.longest + 1)
        return SimpleNamespace(logits=logits.float())


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.integers(1, 12), max_size=40),
    slots=st.integers(1, 9),
    feeds=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    max_new_tokens=st.integers(1, 12),
)
# The first row ends while those that joined after it go on.
@example([12] + [2] * 7 + [12] * 7, 8, [9], 12)
def test_each_prompt_has_its_own_answer_once(lengths, slots, feeds, max_new_tokens) -> None:
    model = Counting(12)
    model.room = max((n + min(n, max_new_tokens) for n in lengths), default=1)
    stream = Slots(model, slots, [STOP], max_new_tokens, STOP, torch.device("cpu"))
    found, waiting, turn = [], list(enumerate(lengths)), 0
    while waiting:
        for key, length in waiting[: feeds[turn % len(feeds)]]:
            stream.add(key, list(range(1, length + 1)))
        waiting = waiting[feeds[turn % len(feeds)] :]
        turn += 1
        found += stream.run()
    found += stream.run(to_the_end=True)
    expected = {
        key: list(range(length - 1, 0, -1))[:max_new_tokens] for key, length in enumerate(lengths)
    }
    assert len(found) == len(expected)
    assert dict(found) == expected
    assert max(model.rows) <= slots
    # Of the longest living row, and what it may have grown since rows joined last.
    assert max(model.widths) <= 24 + 12
    assert stream._cache is None
    assert stream.run(to_the_end=True) == []


def test_the_cache_does_not_grow_with_the_number_of_prompts() -> None:
    model = build("llama")
    widths = []
    forward = model.forward

    def watched(**inputs: Any) -> Any:
        output = forward(**inputs)
        widths.append(inputs["past_key_values"].get_seq_length())
        return output

    rows = prompts(150, longest=10)
    expected = one_by_one(model, rows, 12)
    model.forward = watched
    stream = Slots(model, 4, list(range(2, 8)), 12, 0, torch.device("cpu"))
    for n, row in enumerate(rows):
        stream.add(n, row)
    answers = dict(stream.run(to_the_end=True))
    assert [answers[n] for n in range(150)] == expected
    assert max(widths) <= 10 + 2 * 12


def test_free_slots_are_refilled_and_steps_saved() -> None:
    """Batches of 8, with one long answer each, would take 8 x 12 steps."""
    model = Counting(12)
    stream = Slots(model, 8, [STOP], 12, STOP, torch.device("cpu"))
    for n in range(64):
        stream.add(n, list(range(1, 13 if n % 8 == 0 else 3)))
    assert len(stream.run(to_the_end=True)) == 64
    assert len(model.rows) < 0.6 * 8 * 12


def test_a_stream_waits_until_its_slots_can_be_filled() -> None:
    model = Counting(12)
    stream = Slots(model, 4, [STOP], 12, STOP, torch.device("cpu"))
    for n in range(3):
        stream.add(n, [1, 2, 3])
        assert stream.run() == []
    assert len(model.rows) == 1
    assert len(stream.run(to_the_end=True)) == 3


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_leaves_nothing(error: type[BaseException]) -> None:
    model = Counting(12)

    def failing(**inputs: Any) -> Any:
        if len(model.rows) > 3:
            raise error
        return model(**inputs)

    stream = Slots(failing, 2, [STOP], 12, STOP, torch.device("cpu"))
    for n in range(6):
        stream.add(n, [1, 2, 3, 4, 5, 6])
    with pytest.raises(error):
        stream.run()
    assert stream._cache is None
    assert stream.run(to_the_end=True) == []


def test_a_model_without_its_cache_is_refused() -> None:
    """In training, gradient checkpointing turns the cache off: answers would be wrong."""
    model = build("llama").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(OneShotError, match=r"model\.decoding\.backend: .*no cache"):
        in_slots(model, prompts(3), 2, 4)


def test_models_that_cannot_be_refilled_are_told() -> None:
    from transformers import (
        Llama4ForCausalLM,
        Llama4TextConfig,
        MambaConfig,
        MambaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    small = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1}
    mamba = MambaForCausalLM(MambaConfig(**small, state_size=4))
    t5 = T5ForConditionalGeneration(
        T5Config(vocab_size=32, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    )
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    more = {"intermediate_size": 16, "intermediate_size_mlp": 16, "num_local_experts": 2}
    llama4 = Llama4ForCausalLM(Llama4TextConfig(**small, **heads, **more, pad_token_id=0))
    for model in (mamba, t5, llama4):
        assert obstacle(model, do_sample=False) is not None, type(model).__name__
    assert obstacle(build("llama"), do_sample=True) == "answers are sampled"


def test_a_feed_of_any_size_gives_the_same() -> None:
    model, rows = build("gemma2_window"), prompts(20)
    expected = one_by_one(model, rows, 10)
    for feed in (1, 5, 20):
        assert in_slots(model, rows, 6, 10, feed=feed) == expected
