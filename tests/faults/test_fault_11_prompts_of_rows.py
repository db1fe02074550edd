"""Prompts are the beginning of their rows, token for token, under every shape of template."""

from __future__ import annotations

from typing import Any

import pytest
from chat_shapes import (
    ALWAYS_HEADER,
    END_AND_EOS,
    NEVER_HEADER,
    NO_END,
    RETURN,
    TEXT_END,
    TRAILING_BLANK,
    TURNS,
    asked,
    chat,
    learned,
    of_transformers,
    tokenizer_of,
)

from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.models.chat_format import stop_token_ids

SHAPES = {
    "turns": TURNS,
    "always a header": ALWAYS_HEADER,
    "never a header": NEVER_HEADER,
    "end and eos": END_AND_EOS,
    "return": RETURN,
    "an end of words": TEXT_END,
    "no end": NO_END,
}
ANSWERS = ["mix flour", "  mix flour", "mix flour\n", "<|end|> mix"]


@pytest.fixture(scope="module", params=SHAPES)
def shape(request: Any) -> str:
    return request.param


@pytest.fixture(scope="module", params=["bytes", "pieces"])
def tokenizer(request: Any, shape: str) -> Any:
    return tokenizer_of(SHAPES[shape], request.param)


@pytest.mark.parametrize("answer", ANSWERS, ids=repr)
def test_rows_begin_with_their_prompt(tokenizer: Any, answer: str, shape: str) -> None:
    for system in (None, "be kind"):
        row = chat("bread ?", answer, system=system)
        prompt, encoded = asked(tokenizer, row), encode_conversation(tokenizer, row)
        size = len(prompt)
        assert encoded.input_ids[:size] == prompt
        assert not any(encoded.loss_mask[:size])
        assert encoded.loss_mask[size]
        ended = encoded.loss_mask.index(False, size) if False in encoded.loss_mask[size:] else None
        part = encoded.input_ids[size:ended]
        assert encoded.loss_mask[size:ended] == [True] * len(part)
        # A special token has a space put around it by some.
        written, wanted = ("".join(text.split()) for text in (tokenizer.decode(part), answer))
        assert written.startswith(wanted)
        if shape != "never a header":
            assert prompt == of_transformers(tokenizer, row)


@pytest.mark.parametrize("first", ANSWERS[:-1], ids=repr)
def test_every_learned_answer_begins_where_its_prompt_ends(
    tokenizer: Any, first: str, shape: str
) -> None:
    if shape == "return":
        # Its last answer ends otherwise than the one before.
        row = chat("bread ?", first, "and then ?", "bake it .", silent=(0,))
    else:
        row = chat("bread ?", first, "and then ?", "bake it .")
    encoded = encode_conversation(tokenizer, row)
    starts = [i for i, on in enumerate(encoded.loss_mask) if on and not encoded.loss_mask[i - 1]]
    prompts = [asked(tokenizer, chat("bread ?")), asked(tokenizer, row)][shape == "return" :]
    assert starts == [len(prompt) for prompt in prompts]
    for prompt in prompts:
        assert encoded.input_ids[: len(prompt)] == prompt


ENDS = {
    "turns": "<|end|>",
    "always a header": "<|end|>",
    "never a header": "<|end|>",
    "end and eos": "<|end|>",
    "return": "<|return|>",
}


def test_the_end_of_turn_stops_and_no_header_is_learned(tokenizer: Any, shape: str) -> None:
    stops = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer))
    assert stops[0] == ENDS.get(shape, "<|eos|>")
    assert set(stops) == {ENDS.get(shape, "<|eos|>"), "<|eos|>"}
    (text,) = learned(tokenizer, chat("bread ?", "mix flour"))
    words = {"an end of words": "mix flour (over)\n"}.get(shape, "mix flour\n")
    expected = f"mix flour{ENDS[shape]}" if shape in ENDS else words
    # SentencePiece puts a space before each text behind a special token.
    assert text.replace(" <|", "<|").removeprefix(" ") == expected


def test_the_header_that_nobody_asks_for_is_the_prompts() -> None:
    tokenizer = tokenizer_of(NEVER_HEADER)
    row = chat("bread ?", "mix flour")
    assert tokenizer.decode(asked(tokenizer, row)) == (
        "<|start|>user<|sep|>bread ?<|end|><|start|>assistant<|sep|>"
    )
    assert learned(tokenizer, row) == ["mix flour<|end|>"]


@pytest.mark.parametrize(
    ("template", "answer"), [(TURNS, "\nmix flour"), (TRAILING_BLANK, "mix flour")]
)
def test_an_answer_that_the_tokenizer_merges_with_its_prompt_is_tokenised_apart(
    template: str, answer: str
) -> None:
    # At generation the model gets the prompt alone, and would never see the merged token.
    tokenizer = tokenizer_of(template)
    row = encode_conversation(tokenizer, chat("bread ?", answer))
    prompt = asked(tokenizer, chat("bread ?"))
    assert prompt == of_transformers(tokenizer, chat("bread ?"))
    assert row.input_ids[: len(prompt)] == prompt
    assert row.loss_mask.index(True) == len(prompt)
    (text,) = learned(tokenizer, chat("bread ?", answer))
    assert text.startswith(answer)
    assert tokenizer.decode(row.input_ids).startswith(tokenizer.decode(prompt) + answer)
