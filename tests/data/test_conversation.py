"""`Conversation` and the validation of its turns."""

from __future__ import annotations

import pytest

from oneshot_lit.conversation import (
    Conversation,
    Message,
    conversation_from_pair,
    parse_messages,
    require_trainable,
)

SYSTEM = {"role": "system", "content": "be kind"}
USER = {"role": "user", "content": "how do i bake bread ?"}
ANSWER = {"role": "assistant", "content": "mix flour"}
ORIGIN = "rows.jsonl row 12"


@pytest.mark.parametrize(
    "turns",
    [
        [USER],
        [USER, ANSWER],
        [SYSTEM, USER],
        [SYSTEM, USER, ANSWER],
        [USER, ANSWER, USER],
        [SYSTEM, USER, ANSWER, USER, ANSWER],
        [{**USER, "name": "further keys are fine"}, ANSWER],
        [{"role": "system", "content": ""}, USER],
        [USER, {"role": "assistant", "content": ""}],
        (USER,),
    ],
)
def test_good_turns_are_kept_as_they_are(turns) -> None:
    messages = parse_messages(turns, ORIGIN)
    assert [(m.role, m.content) for m in messages] == [(t["role"], t["content"]) for t in turns]


@pytest.mark.parametrize(
    ("turns", "part"),
    [
        (None, "non-empty list"),
        ([], "non-empty list"),
        ("user: hello", "non-empty list"),
        (b"user", "non-empty list"),
        ({"role": "user", "content": "a"}, "non-empty list"),
        (7, "non-empty list"),
        (["hello"], "needs the keys 'role' and 'content' (turn 1)"),
        ([USER, None], "needs the keys 'role' and 'content' (turn 2)"),
        ([{"role": "user"}], "needs the keys 'role' and 'content' (turn 1)"),
        ([{"content": "a"}], "needs the keys 'role' and 'content' (turn 1)"),
        ([{"from": "human", "value": "a"}], "needs the keys 'role' and 'content' (turn 1)"),
        ([{"role": "asistant", "content": "a"}], "did you mean 'assistant'"),
        ([{"role": "User", "content": "a"}], "did you mean 'user'"),
        (
            [USER, {"role": "tool", "content": "a"}],
            "tool calls are not supported (role 'tool' in turn 2)",
        ),
        ([{"role": None, "content": "a"}], "unknown role 'None'"),
        ([{"role": ["user"], "content": "a"}], "unknown role"),
        ([{"role": "user", "content": None}], "'content' must be text (turn 1)"),
        ([USER, {"role": "assistant", "content": 3}], "'content' must be text (turn 2)"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}]}],
            "'content' must be text (turn 1)",
        ),
        ([{"role": "user", "content": ""}], "the user turn is empty (turn 1)"),
        ([USER, ANSWER, {"role": "user", "content": " \n"}], "the user turn is empty (turn 3)"),
        ([USER, SYSTEM], "system turn must come first"),
        ([SYSTEM, SYSTEM, USER], "system turn must come first"),
        ([USER, USER], "turns do not alternate: 1 and 2 are both 'user'"),
        ([USER, ANSWER, ANSWER], "turns do not alternate: 2 and 3 are both 'assistant'"),
        ([ANSWER], "does not answer a user turn (turn 1)"),
        ([SYSTEM, ANSWER], "does not answer a user turn (turn 2)"),
        ([SYSTEM], "no user turn"),
    ],
)
def test_bad_turns_are_named(turns, part: str, mistake_of) -> None:
    message = mistake_of(parse_messages, turns, ORIGIN)
    assert message.startswith(f"{ORIGIN}: ")
    assert part in message


def test_prompt_ends_on_the_last_user_turn() -> None:
    whole = Conversation(parse_messages([SYSTEM, USER, ANSWER, USER, ANSWER], ORIGIN), ORIGIN, "7")
    assert [m.role for m in whole.prompt.messages] == ["system", "user", "assistant", "user"]
    assert (whole.prompt.origin, whole.prompt.id) == (ORIGIN, "7")
    assert whole.prompt.prompt == whole.prompt
    assert whole.prompt_text == USER["content"]
    assert whole.response_text == ANSWER["content"]
    assert whole.prompt.response_text is None


def test_digest_knows_content_and_roles_but_not_provenance() -> None:
    first = conversation_from_pair("a", "b", origin="x", id="1", category="c")
    assert first.digest() == conversation_from_pair("a", "b", origin="y").digest()
    others = [
        conversation_from_pair("a"),
        conversation_from_pair("a", "b "),
        conversation_from_pair("ab", ""),
        conversation_from_pair("a", "b", system=""),
        Conversation((Message("user", "a"), Message("user", "b"))),
    ]
    assert len({first.digest(), *(c.digest() for c in others)}) == 6


def test_as_dict_is_a_row_of_chat_jsonl() -> None:
    row = conversation_from_pair("a", "b", system="s", id="1", reference="b").as_dict()
    assert row == {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ],
        "id": "1",
        "reference": "b",
    }


def test_training_rows_end_on_an_answer(mistake_of) -> None:
    good = conversation_from_pair("a", "b", origin=ORIGIN)
    assert require_trainable(good) is good
    for bad, part in (
        (conversation_from_pair("a", origin=ORIGIN), "ends on a user turn"),
        (conversation_from_pair("a", " \n", origin=ORIGIN), "empty"),
    ):
        message = mistake_of(require_trainable, bad)
        assert message.startswith(f"{ORIGIN}: ")
        assert part in message
