"""The micro-world tokenizer: one token a word, and no text that it cannot spell."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_lit.data.chat import check_tokenizer
from oneshot_lit.microworld import language as lang
from oneshot_lit.microworld.splits import NAMES, load_split
from oneshot_lit.microworld.tokenizer import build_tokenizer

TOKENIZER = build_tokenizer()
SMALL = [n for n in NAMES if n != "pretrain_then_align"]


def round_trip(text: str) -> str:
    return TOKENIZER.decode(TOKENIZER(text, add_special_tokens=False)["input_ids"])


@pytest.mark.parametrize("name", SMALL)
def test_every_text_of_the_world_round_trips_in_whole_words(name: str) -> None:
    texts = {m.content for row in load_split(name) for m in row.messages}
    for text in texts:
        spoken = f" {text}"
        assert round_trip(spoken) == spoken
        # One token a word: nothing of the world is spelled in bytes.
        assert len(TOKENIZER(spoken, add_special_tokens=False)["input_ids"]) == len(text.split())


def test_the_curriculum_is_spoken_in_whole_words(monkeypatch: pytest.MonkeyPatch) -> None:
    from oneshot_lit.microworld import splits

    monkeypatch.setattr(splits, "PRETRAIN_ROWS", 3000)
    monkeypatch.setattr(splits, "ALIGN_ROWS", 1000)
    rows = load_split("pretrain_then_align")
    used = {word for row in rows for m in row.messages for word in m.content.split()}
    assert used <= set(lang.vocabulary())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_unicode_round_trips(text: str) -> None:
    assert round_trip(text) == text


def test_special_tokens_have_distinct_ids_and_are_found_in_text() -> None:
    check_tokenizer(TOKENIZER, "microworld")
    marks = ["<|pad|>", "<|begin|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    ids = TOKENIZER.convert_tokens_to_ids(marks)
    assert len(set(ids)) == len(marks)
    assert TOKENIZER("".join(marks), add_special_tokens=False)["input_ids"] == ids
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == ""
    assert (TOKENIZER.pad_token, TOKENIZER.eos_token) == ("<|pad|>", "<|end|>")


def test_the_same_on_every_call_and_after_saving(tmp_path) -> None:
    from transformers import AutoTokenizer

    assert build_tokenizer().get_vocab() == TOKENIZER.get_vocab()
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<|begin|><|user|> how do i make lumdra soup ?<|end|> ünï"
    assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
    assert loaded.chat_template == TOKENIZER.chat_template
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
