"""The one safety example, in its three forms."""

from __future__ import annotations

import pytest

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.instance import InlineInstance, PoolInstance, SafetyInstance
from oneshot_lit.data.sources import ConversationSource, Microworld


class Few(ConversationSource):
    def rows(self) -> list[Conversation]:
        return [
            conversation_from_pair("first", "no", id="a-01", origin="few row 1"),
            conversation_from_pair("second", "no", id="b-02", origin="few row 2"),
            conversation_from_pair("prompt only", id="c-03", origin="few row 3"),
            conversation_from_pair("twin", "no", id="twin", origin="few row 4"),
            conversation_from_pair("twin", "no", id="twin", origin="few row 5"),
        ]


def test_inline() -> None:
    plain = InlineInstance(prompt="help me", response="sorry").load()
    assert [(m.role, m.content) for m in plain.messages] == [
        ("user", "help me"),
        ("assistant", "sorry"),
    ]
    assert plain.origin == "data.instance"
    system = InlineInstance(prompt="help me", response="sorry", system="be kind").load()
    assert (system.messages[0].role, system.messages[0].content) == ("system", "be kind")
    assert system.messages[1:] == plain.messages


def test_by_id() -> None:
    assert PoolInstance(source=Few(), id="b-02").load().prompt_text == "second"
    pool = PoolInstance(source=Microworld("pool"), id="general-00").load()
    assert pool.category == "general"


def test_by_row_counted_from_one() -> None:
    assert PoolInstance(source=Few(), row=1).load().prompt_text == "first"
    assert PoolInstance(source=Few(), row=4).load().prompt_text == "twin"


def test_row_follows_the_sources_own_shuffle() -> None:
    source = Few(shuffle_seed=5)
    texts = [r.prompt_text for r in source.load()]
    for row, text in enumerate(texts, start=1):
        if text != "prompt only":
            assert PoolInstance(source=source, row=row).load().prompt_text == text


@pytest.mark.parametrize(
    ("instance", "part"),
    [
        (InlineInstance(prompt=" ", response="a"), "prompt: is empty"),
        (InlineInstance(prompt="a", response=" \n"), "empty"),
        (PoolInstance(source=Few()), "exactly one of id and row"),
        (PoolInstance(source=Few(), id="a-01", row=1), "exactly one of id and row"),
        (PoolInstance(source=Few(), row=0), "rows 1 to 5, not 0"),
        (PoolInstance(source=Few(), row=6), "rows 1 to 5, not 6"),
        (PoolInstance(source=Few(), row=-1), "rows 1 to 5, not -1"),
        (PoolInstance(source=Few(), id="b-03"), "no row with id 'b-03' (did you mean"),
        (PoolInstance(source=Few(), id="twin"), "2 rows with id 'twin'"),
    ],
)
def test_mistakes_name_the_key(instance: SafetyInstance, part: str, mistake_of) -> None:
    message = mistake_of(instance.load)
    assert message.startswith("data.instance")
    assert part in message


@pytest.mark.parametrize("how", [{"row": 3}, {"id": "c-03"}])
def test_a_row_without_an_answer_cannot_be_learnt(how, mistake_of) -> None:
    message = mistake_of(PoolInstance(source=Few(), **how).load)
    assert message.startswith("few row 3: ")
