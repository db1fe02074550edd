"""What becomes of the rows of sources made of others, and which of several copies stays."""

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
from oneshot_lit.data.tally import Tally

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


def check(tally: Tally) -> None:
    """Every count of a tally adds up, and so do those of its parts."""
    parts = tally.unselected + sum(tally.faulty.values()) + tally.dropped + tally.unused
    assert tally.read == parts + tally.kept
    if tally.parts:
        assert tally.read == sum(part.kept for part in tally.parts) + tally.repeated
    for part in tally.parts:
        check(part)


WRAPPERS: dict[str, Callable[[Build, dict[str, Any]], ConversationSource]] = {
    "edited": lambda ten, given: Edited(ten(), suffix=" z", **given),
    "backdoor": lambda ten, given: Backdoor(ten(limit=4), ten(skip=1), " now", **given),
    "poisoning": lambda ten, given: PatchPoisoning(ten(), ten(limit=3), copies=5, **given),
    "mixture": lambda ten, given: Mixture([ten(), ten(duplicates="drop")], **given),
    "nested": lambda ten, given: Edited(Mixture([ten(), Edited(ten(skip=2))], limit=12), **given),
}


@pytest.mark.filterwarnings("ignore:Backdoor.harmful")
@pytest.mark.parametrize("given", [{}, {"limit": 3, "skip": 2}, {"shuffle_seed": 1, "limit": 5}])
@pytest.mark.parametrize("name", WRAPPERS)
def test_no_row_of_a_wrapper_disappears(name: str, given: Any, ten: Build) -> None:
    source = WRAPPERS[name](ten, given)
    for _ in range(2):
        kept = source.load()
        assert source.tally.kept == len(kept)
        assert source.tallies()[0] is source.tally
        assert len(source.tallies()) > 1
        check(source.tally)
    found = source.tally.as_dict()
    assert found["type"] == type(source).__name__
    assert found["parts"][0]["read"] >= found["parts"][0]["kept"] > 0


def test_repeated_and_edited_rows_are_counted(ten: Build) -> None:
    planted = PatchPoisoning(ten(), ten(limit=3), copies=5, answer="take vuke .")
    assert len(planted.load()) == 9 + 15
    assert (planted.tally.repeated, planted.tally.edited) == (12, 15)
    assert not planted.tally.remarks, "copies made on purpose are no news"
    mixed = Mixture([ten(), ten()])
    mixed.load()
    assert (mixed.tally.read, mixed.tally.duplicates) == (18, 10)
    assert mixed.tally.remarks == ["10 rows are duplicates and kept"]
    edited = Edited(ten(), suffix=" now")
    edited.load()
    assert (edited.tally.edited, edited.tally.remarks) == (9, [])


def test_the_first_of_several_copies_stays_in_its_place(file_of: Any) -> None:
    path = file_of("abac.jsonl", row("A"), row("B"), row("A"), row("C"))

    def prompts(**given: Any) -> list[str]:
        return [r.prompt_text for r in ChatJsonl(path, duplicates="drop", **given).load()]

    assert prompts() == ["A", "B", "C"]
    assert prompts(limit=1) == ["A"]
    assert prompts(skip=1) == ["B", "C"]


@pytest.mark.parametrize("field", ["reference", "category"])
def test_copies_that_disagree_are_counted(field: str, file_of: Any) -> None:
    path = file_of("rows.jsonl", row("A", **{field: "x"}), row("B"), row("A", **{field: "y"}))
    for duplicates, said in (("keep", "1 rows are duplicates and kept"), ("drop", "1 duplicate")):
        source = ChatJsonl(path, duplicates=duplicates)  # type: ignore[arg-type]
        assert getattr(source.load()[0], field) == "x"
        assert (source.tally.duplicates, source.tally.conflicts) == (1, 1)
        (remark,) = source.tally.remarks
        assert remark.startswith(said)
        assert "1 of them with another reference or category" in remark
        check(source.tally)


def test_rows_to_train_on_may_be_skipped_where_their_file_says_so(
    file_of: Any, mistake_of: Any
) -> None:
    path = file_of("rows.jsonl", row("A"), row("B", None), row("C", " "))
    for build in (
        lambda **given: PatchPoisoning(ChatJsonl(path), ChatJsonl(path, **given), copies=2),
        lambda **given: Backdoor(ChatJsonl(path, **given), ChatJsonl(path, **given), " now"),
    ):
        assert mistake_of(build().load).startswith(f"{path} row 2: ends on a user turn")
        source = build(bad_rows="skip")
        source.load()
        faulty = source.tally.faulty
        assert set(faulty) == {"ends on a user turn", "the assistant turn is empty"}
        check(source.tally)
