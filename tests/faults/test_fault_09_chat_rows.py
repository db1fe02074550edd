"""Weights of turns, the system turn beside them, and what cannot be learned as it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from chat_shapes import TURNS, learned, tokenizer_of

from oneshot_lit.conversation import Conversation, parse_messages, require_trainable
from oneshot_lit.data import ChatJsonl, Edited, Inline, SafetyDataModule, TableFile
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.columns import conversation_of, resolve_columns
from oneshot_lit.errors import OneShotError, RowError

ONE = [
    {"role": "user", "content": "bake bread ?"},
    {"role": "assistant", "content": "mix flour"},
    {"role": "user", "content": "and salt ?"},
    {"role": "assistant", "content": "bake it ."},
]


def weighted(first: dict[str, Any], second: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    return [ONE[0], ONE[1] | first, ONE[2], ONE[3] | (second or {})]


def row_of(turns: Any, **columns: Any) -> Conversation:
    row, origin = {"messages": turns, **columns}, "rows.jsonl row 1"
    return conversation_of(resolve_columns("chat", None, list(row), origin), row, origin)


NONE = [{"weight": 0}, {"weight": 0.0}, {"weight": False}, {"train": False}, {"train": 0}]


@pytest.mark.parametrize("without", NONE, ids=str)
def test_an_answer_of_weight_0_is_context_without_loss(without: dict[str, Any]) -> None:
    tokenizer = tokenizer_of(TURNS)
    whole = encode_conversation(tokenizer, row_of(ONE))
    first, last = row_of(weighted(without)), row_of(weighted({}, without))
    assert learned(tokenizer, row_of(ONE)) == ["mix flour<|end|>", "bake it .<|end|>"]
    assert learned(tokenizer, first) == ["bake it .<|end|>"]
    assert learned(tokenizer, last) == ["mix flour<|end|>"]
    for row in (first, last):
        assert encode_conversation(tokenizer, row).input_ids == whole.input_ids
        require_trainable(row)


@pytest.mark.parametrize(
    "kept", [{"weight": 1}, {"weight": 1.0}, {"train": True}, {"weight": None}, {"train": None}]
)
def test_a_weight_of_1_and_an_empty_cell_change_nothing(kept: dict[str, Any]) -> None:
    assert row_of(weighted(kept)) == row_of(ONE)
    assert row_of(weighted(kept)).digest() == row_of(ONE).digest()


@pytest.mark.parametrize(
    ("turns", "part"),
    [
        (weighted({"weight": 0.5}), "'weight' must be 0 or 1, false or true (turn 2)"),
        (weighted({"weight": 2}), "'weight' must be 0 or 1, false or true (turn 2)"),
        (weighted({"weight": -1}), "'weight' must be 0 or 1, false or true (turn 2)"),
        (weighted({"weight": "0"}), "'weight' must be 0 or 1, false or true (turn 2)"),
        (weighted({"train": "no"}), "'train' must be 0 or 1, false or true (turn 2)"),
        (weighted({"train": [0]}), "'train' must be 0 or 1, false or true (turn 2)"),
        (
            [ONE[0], ONE[1] | {"tool_calls": [{"id": "a"}]}],
            "'tool_calls' is not supported (turn 2)",
        ),
        (
            [ONE[0], {"role": "assistant", "content": None, "tool_calls": [{}]}],
            "'tool_calls' is not supported",
        ),
        (
            [ONE[0], {"role": "assistant", "tool_calls": [{"id": "a"}]}],
            "'tool_calls' is not supported (turn 2)",
        ),
        ([ONE[0], ONE[1] | {"reasoning_content": "how"}], "'reasoning_content' is not supported"),
        (
            [ONE[0], ONE[1] | {"function_call": {"name": "a"}}],
            "'function_call' is not supported (turn 2)",
        ),
        (
            [*ONE[:2], {"role": "tool", "content": "a"}],
            "tool calls are not supported (role 'tool' in turn 3)",
        ),
        (
            [*ONE[:2], {"role": "function", "content": "a"}],
            "tool calls are not supported (role 'function' in turn 3)",
        ),
        ([ONE[0], {"role": "assistant", "content": None}], "'content' must be text (turn 2)"),
        (
            [ONE[0], {"role": "assistant", "content": None, "refusal": "no"}],
            "'content' must be text",
        ),
    ],
)
def test_what_cannot_be_learned_as_written_is_one_line(turns: Any, part: str) -> None:
    with pytest.raises(RowError) as caught:
        parse_messages(turns, "rows.jsonl row 1")
    assert str(caught.value).startswith("rows.jsonl row 1: ")
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "part"),
    [
        ({"weight": 0}, "'weight' of a whole row is not supported"),
        ({"weight": 0.3}, "'weight' of a whole row is not supported"),
        ({"train": False}, "'train' of a whole row is not supported"),
        ({"tools": [{"type": "function"}]}, "'tools' of a whole row is not supported"),
    ],
)
def test_keys_of_the_row_that_cannot_be_followed(columns: dict[str, Any], part: str) -> None:
    with pytest.raises(RowError, match=part):
        row_of(ONE, **columns)
    assert row_of(ONE, tools=None, weight=1, functions=[], system=None) == row_of(ONE)


def test_a_row_that_teaches_nothing_is_refused_for_training_alone() -> None:
    silent = row_of(weighted({"weight": 0}, {"weight": 0}))
    assert silent.prompt == row_of(ONE).prompt
    with pytest.raises(RowError, match="every answer has the weight 0; nothing to learn"):
        require_trainable(silent)


def test_an_empty_answer_is_refused_wherever_it_would_be_learned() -> None:
    empty = {"content": " "}
    with pytest.raises(RowError, match=r"the assistant turn is empty \(turn 2\)"):
        require_trainable(row_of(weighted(empty)))
    require_trainable(row_of(weighted(empty | {"weight": 0})))


@pytest.mark.parametrize("key", ["system", "System", "system_prompt"])
def test_a_system_turn_beside_the_messages_is_read(key: str, tmp_path: Path) -> None:
    inner = row_of([{"role": "system", "content": "be kind"}, *ONE])
    assert row_of(ONE, **{key: "be kind"}).messages == inner.messages
    assert row_of(
        list(map(dict, [{"role": "system", "content": "be kind"}, *ONE])), system="be kind"
    )
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({key: "be kind", "messages": ONE}) + "\n")
    columns = {"messages": "messages", "system": key}
    for source in (
        ChatJsonl(str(path)),
        TableFile(str(path)),
        TableFile(str(path), preset="chat"),
        TableFile(str(path), columns=columns),
        TableFile(str(path), system="be short"),
    ):
        assert source.load()[0].messages == inner.messages
    with pytest.raises(RowError, match="'system' and the system turn of the messages differ"):
        row_of([{"role": "system", "content": "be short"}, *ONE], system="be kind")


def test_a_weight_stays_with_its_turn(tmp_path: Path) -> None:
    row = row_of(weighted({"weight": 0}))
    assert row.as_dict()["messages"] == weighted({"weight": 0})
    assert row_of(row.as_dict()["messages"]) == row
    assert row.digest() != row_of(ONE).digest()
    assert [m.weight for m in Edited(Inline([]), prefix="please ").edit(row).messages] == [
        None,
        0,
        None,
        None,
    ]
    assert Inline([weighted({"train": False})]).load()[0].messages == row.messages


def test_rows_with_tools_are_left_out_when_faulty_rows_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    tools = [ONE[0], {"role": "assistant", "content": "", "tool_calls": [{"id": "a"}]}]
    silent = [ONE[0], ONE[1] | {"weight": 0}]
    path.write_text("".join(json.dumps({"messages": t}) + "\n" for t in (tools, silent, ONE)))
    data = SafetyDataModule(train=ChatJsonl(str(path), bad_rows="skip"))
    data.use_tokenizer(tokenizer_of(TURNS))
    data.setup("fit")
    assert data.training is not None
    assert len(data.training) == 1
    for number in (1, 2):
        path.write_text(json.dumps({"messages": (tools, silent)[number - 1]}) + "\n")
        data = SafetyDataModule(train=ChatJsonl(str(path)))
        data.use_tokenizer(tokenizer_of(TURNS))
        with pytest.raises(OneShotError, match="row 1"):
            data.setup("fit")
