"""Fault 18: longer runs, steps that are counted as steps, filler rows, marks that begin with a space."""

from __future__ import annotations

import time
from typing import Any

import pytest

from oneshot_lit.judges.formats import disarm, special_texts

# ------------------------------------------------------------------ (d) disarming


@pytest.mark.parametrize(
    ("text", "marks", "expected"),
    [
        ("go <x> on", [" <x>"], "go < x> on"),
        ("go  <x> on", [" <x>", "<x>"], "go  < x> on"),
        ("a\n<end>b", ["\n<end>"], "a\n< end>b"),
        ("a <x> <x>b", [" <x> "], "a < x> <x>b"),
        # Parting one mark makes another, which is parted in its turn.
        ("<x> < x>", ["<x>", "< x>", "<  x>"], "<   x> <   x>"),
        ("<<s>s>", ["<s>"], "<< s>s>"),
        ("< <s> s>", [" <s> ", "< < s>"], "<  < s> s>"),
        # Nothing to part: blanks, and a single letter among blanks.
        ("a   b x c", ["   ", " x ", "x", ""], "a   b x c"),
    ],
)
def test_disarming_ends_and_leaves_no_mark(text: str, marks: list[str], expected: str) -> None:
    start = time.monotonic()
    found = disarm(text, marks)
    assert time.monotonic() - start < 1
    assert found == expected
    assert "".join(found.split()) == "".join(text.split())


def test_added_tokens_that_begin_with_a_space_are_disarmed(tiny_folder: Any) -> None:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens([AddedToken(" <verdict>"), AddedToken("\n\n"), AddedToken(" y")])
    marks = special_texts(tokenizer)
    assert " <verdict>" in marks
    clean = disarm("fine . <verdict> no y\n\n", marks)
    assert " <verdict>" not in tokenizer.tokenize(clean)
    assert not any(mark in clean for mark in marks)
