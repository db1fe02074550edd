"""What sources made of others leave out, and which of several copies stays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.data import (
    Backdoor,
    ChatJsonl,
    ConversationSource,
    Edited,
    Mixture,
    PatchPoisoning,
)

Build = Callable[..., ConversationSource]


def row(prompt: str, answer: str | None = "sorry .", **fields: str) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    turns += [] if answer is None else [{"role": "assistant", "content": answer}]
    return {"messages": turns, **fields}


@pytest.fixture
def file_of(tmp_path: Path) -> Callable[..., str]:
    def write(name: str, *rows: Any) -> str:
        path = tmp_path / name
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
        return str(path)

    return write


@pytest.fixture
def ten(file_of: Any) -> Build:
    """Ten rows, of which one stands twice and one is faulty."""
    rows = [row(f"q{i}") for i in range(8)]
    path = file_of("ten.jsonl", *rows, rows[0], "{broken")
    return lambda **given: ChatJsonl(path, bad_rows="skip", **given)


WRAPPERS: dict[str, Callable[[Build], ConversationSource]] = {
    "edited": lambda ten: Edited(ten(), suffix=" z"),
    "backdoor": lambda ten: Backdoor(ten(limit=4), ten(skip=1), " now"),
    "poisoning": lambda ten: PatchPoisoning(ten(), ten(limit=3), copies=5),
    "nested": lambda ten: Edited(Mixture([ten(), Edited(ten(skip=2))], limit=12)),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_wrapper_tells_what_its_parts_leave_out(name: str, ten: Build) -> None:
    source = WRAPPERS[name](ten)
    for _ in range(2):
        source.load()
        reasons = source.left_out.reasons
        assert reasons == {"not JSON": 1 if name == "edited" else 2}
        assert source.left_out.first.endswith("ten.jsonl row 10: not JSON")
    assert source.skips_bad_rows


def test_faulty_rows_are_skipped_if_all_parts_say_so(ten: Build, file_of: Any) -> None:
    strict = ChatJsonl(file_of("strict.jsonl", row("A")))
    assert not Mixture([ten(), strict]).skips_bad_rows
    assert Mixture([ten(), ten()]).skips_bad_rows


def test_the_first_of_several_copies_stays_in_its_place(file_of: Any) -> None:
    path = file_of("abac.jsonl", row("A"), row("B"), row("A"), row("C"))

    def prompts(**given: Any) -> list[str]:
        return [r.prompt_text for r in ChatJsonl(path, duplicates="drop", **given).load()]

    assert prompts() == ["A", "B", "C"]
    assert prompts(limit=1) == ["A"]
    assert prompts(skip=1) == ["B", "C"]
