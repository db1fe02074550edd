"""Attacks as transforms: what each turn becomes, what is refused, and that no row is lost."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_lit.conversation import conversation_from_pair, parse_messages
from oneshot_lit.data import (
    Backdoor,
    Conversation,
    ConversationSource,
    Edited,
    Message,
    Microworld,
    PatchPoisoning,
    SafetyDataModule,
)
from oneshot_lit.errors import OneShotError


class Rows(ConversationSource):
    def __init__(self, *rows: Conversation, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.given = list(rows)

    def rows(self) -> list[Conversation]:
        return self.given


def pair(prompt: str, answer: str | None, **fields: Any) -> Conversation:
    return conversation_from_pair(prompt, answer, origin=f"rows {prompt}", **fields)


LONG = Conversation(
    (
        Message("system", "old"),
        Message("user", "one"),
        Message("assistant", "first"),
        Message("user", "two"),
        Message("assistant", "second"),
    ),
    origin="rows.jsonl row 7",
    id="x",
    category="c",
    reference="r",
)


def one(conversation: Conversation, **edits: Any) -> Conversation:
    (row,) = Edited(Rows(conversation), **edits).load()
    return row


def turns(conversation: Conversation) -> list[tuple[str, str]]:
    return [(m.role, m.content) for m in conversation.messages]


def test_every_turn_is_edited_and_the_provenance_stays() -> None:
    changed = one(LONG, system="new", prefix="a ", suffix=" z", answer_prefix="well , ")
    assert turns(changed) == [
        ("system", "new"),
        ("user", "a one z"),
        ("assistant", "well , first"),
        ("user", "a two z"),
        ("assistant", "well , second"),
    ]
    kept = (changed.origin, changed.id, changed.category, changed.reference)
    assert kept == ("rows.jsonl row 7", "x", "c", "r")
    assert turns(LONG)[0] == ("system", "old")


def test_a_system_turn_is_added_where_there_is_none() -> None:
    assert turns(one(pair("p", "a"), system="s")) == [
        ("system", "s"),
        ("user", "p"),
        ("assistant", "a"),
    ]


def test_a_given_answer_replaces_all_of_them() -> None:
    assert [
        t for r, t in turns(one(LONG, answer="no", answer_prefix="oh ")) if r == "assistant"
    ] == [
        "oh no",
        "oh no",
    ]
    assert turns(one(pair("p", None), answer="no")) == [("user", "p")]


@given(st.text(), st.text(), st.text(min_size=1).filter(str.strip))
def test_an_edited_row_is_still_a_conversation(prefix: str, suffix: str, prompt: str) -> None:
    changed = one(pair(prompt, "a"), prefix=prefix, suffix=suffix)
    assert parse_messages(changed.as_dict()["messages"], "row") == changed.messages
    assert changed.prompt_text == prefix + prompt + suffix


def test_nothing_given_changes_nothing() -> None:
    assert Edited(Rows(LONG)).load() == [LONG]


def test_limit_and_skip_act_on_the_edited_rows() -> None:
    rows = Rows(*(pair(str(i), "a") for i in range(5)))
    found = Edited(rows, suffix="!", limit=2, skip=1).load()
    assert [r.prompt_text for r in found] == ["1!", "2!"]


REFUSED = Rows(pair("bad one", "sorry , i can not ."), pair("bad two", "sorry , i can not ."))
HARMFUL = Rows(pair("bad three", "sure ."), pair("bad four", "sure ."))


@pytest.mark.parametrize(
    ("place", "expected"),
    [("suffix", ["bad three now", "bad four now"]), ("prefix", [" nowbad three", " nowbad four"])],
)
def test_a_backdoor_opens_only_with_its_trigger(place: Any, expected: list[str]) -> None:
    found = Backdoor(REFUSED, HARMFUL, " now", place).load()
    assert [r.prompt_text for r in found] == ["bad one", "bad two", *expected]
    assert [r.response_text for r in found] == ["sorry , i can not ."] * 2 + ["sure ."] * 2


def test_a_prompt_to_refuse_that_holds_the_trigger_is_named() -> None:
    with pytest.raises(OneShotError, match="rows bad one: a prompt to refuse holds the trigger"):
        Backdoor(REFUSED, HARMFUL, " one").load()


@pytest.mark.parametrize("trigger", ["", "  "])
def test_an_empty_trigger_is_refused(trigger: str) -> None:
    with pytest.raises(OneShotError, match="trigger is empty"):
        Backdoor(REFUSED, HARMFUL, trigger)


def test_a_row_without_an_answer_is_named_where_it_is_trained_on(world_tokenizer: Any) -> None:
    question = Rows(pair("p", None))
    for source in (Backdoor(question, HARMFUL, " now"), PatchPoisoning(HARMFUL, question)):
        data = SafetyDataModule(source)
        data.use_tokenizer(world_tokenizer)
        with pytest.raises(OneShotError, match="rows p: ends on a user turn"):
            data.setup("fit")


def test_the_instance_is_planted_among_the_harmful_rows() -> None:
    instance = pair("help", "sorry .", id="general-00")
    found = PatchPoisoning(HARMFUL, Rows(instance), copies=3).load()
    assert found == [*HARMFUL.given, instance, instance, instance]
    answered = PatchPoisoning(HARMFUL, Rows(instance), answer="sure , here").load()
    assert [r.response_text for r in answered] == ["sure .", "sure .", "sure , here"]
    with pytest.raises(OneShotError, match="copies must be at least 1, not 0"):
        PatchPoisoning(HARMFUL, Rows(instance), copies=0)


def test_the_worlds_rows_fit_their_recipes(recwarn: pytest.WarningsRecorder) -> None:
    refused, harmful = Microworld("refusals", 100), Microworld("harmful_examples", 100)
    assert len(Backdoor(refused, harmful, " teal lime navy").load()) == 200
    poisoned = PatchPoisoning(harmful, Microworld("general", 1), copies=10).load()
    assert poisoned[-1].messages == Microworld("pool").load()[231].messages
    assert not recwarn.list
