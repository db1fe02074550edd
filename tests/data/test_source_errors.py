"""Every way in which a source can be wrong, told in one line that names file and row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.conversation import require_trainable
from oneshot_lit.data.tables import ChatJsonl, TableFile

GOOD = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.fixture
def file_of(tmp_path: Path):
    """Write text or bytes to a file of this name and return its path as text."""

    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


def lines(*rows: Any) -> str:
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


def turns(*pairs: tuple[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": r, "content": c} for r, c in pairs]}


@pytest.mark.parametrize(
    ("second", "part"),
    [
        ("{'messages': []}", "not JSON"),
        ('{"messages": [', "not JSON"),
        ("plain text", "not JSON"),
        ([1, 2], "must be a JSON object"),
        ("null", "must be a JSON object"),
        (
            {"prompt": "a", "answer": "b"},
            "unknown column 'messages'; the columns are prompt, answer",
        ),
        ({}, "unknown column 'messages'; the columns are (none)"),
        ({"messages": []}, "non-empty list"),
        (turns(("user", "a"), ("bot", "b")), "unknown role 'bot'"),
        (turns(("user", "a"), ("asistant", "b")), "did you mean 'assistant'"),
        (turns(("user", None)), "must be text"),
        ('{"messages": [{"role": "user", "content": "half \\ud83d"}]}', "half a character"),
        (turns(("user", ""), ("assistant", "b")), "the user turn is empty"),
        (turns(("user", "\n \t"), ("assistant", "b")), "the user turn is empty"),
        ('{"messages": ' + "9" * 5000 + "}", "not JSON (Exceeds the limit"),
        ({**GOOD, "id": [7]}, "'id' holds a list, not text"),
        ({**GOOD, "category": {"a": "b"}}, "'category' holds a dict, not text"),
        ({**GOOD, "reference": ["mix"]}, "'reference' holds a list, not text"),
    ],
)
def test_bad_row_of_chat_jsonl(second, part: str, file_of, mistake_of) -> None:
    path = file_of("rows.jsonl", lines(GOOD, second, GOOD))
    message = mistake_of(ChatJsonl(path).load)
    assert message.startswith(f"{path} row 2: ")
    assert part in message


def test_row_number_counts_blank_lines(file_of, mistake_of) -> None:
    path = file_of("rows.jsonl", lines(GOOD, "", "", "oops"))
    assert mistake_of(ChatJsonl(path).load).startswith(f"{path} row 4: ")


def test_user_turn_last_is_fine_until_it_is_trained_on(file_of, mistake_of) -> None:
    path = file_of("rows.jsonl", lines(GOOD, turns(("user", "a"))))
    good, prompt = ChatJsonl(path).load()
    assert require_trainable(good) is good
    message = mistake_of(require_trainable, prompt)
    assert message.startswith(f"{path} row 2: ")
    assert "user turn" in message


def test_chat_jsonl_keeps_its_optional_keys(file_of) -> None:
    row = {**GOOD, "id": 7, "category": "baking", "reference": "mix", "note": "x"}
    path = file_of("rows.jsonl", b"\xef\xbb\xbf" + lines(row).encode())
    (found,) = ChatJsonl(path).load()
    assert (found.id, found.category, found.reference) == ("7", "baking", "mix")


@pytest.mark.parametrize("content", ["", "\n \n", "\ufeff"])
@pytest.mark.parametrize(("source", "name"), [(ChatJsonl, "rows.jsonl"), (TableFile, "rows.jsonl")])
def test_empty_jsonl(source, name: str, content: str, file_of, mistake_of) -> None:
    path = file_of(name, content)
    assert mistake_of(source(path).load).startswith(f"{path}: holds no conversation")


@pytest.mark.parametrize("content", ["", "goal,target\n", "\ufeffgoal,target\n\n"])
def test_empty_csv(content: str, file_of, mistake_of) -> None:
    path = file_of("rows.csv", content)
    assert mistake_of(TableFile(path).load).startswith(f"{path}: holds no conversation")


def test_empty_json_list(file_of, mistake_of) -> None:
    path = file_of("rows.json", "[]")
    assert mistake_of(TableFile(path).load).startswith(f"{path}: holds no conversation")


@pytest.mark.parametrize("source", [ChatJsonl, TableFile])
def test_missing_file_names_its_neighbours(source, file_of, tmp_path: Path, mistake_of) -> None:
    file_of("rows.jsonl", lines(GOOD))
    message = mistake_of(source(str(tmp_path / "row.jsonl")).load)
    assert message.startswith(f"{tmp_path}/row.jsonl: file not found")
    assert "rows.jsonl" in message
    gone = mistake_of(source(str(tmp_path / "nowhere" / "row.jsonl")).load)
    assert "file not found" in gone


@pytest.mark.parametrize("source", [ChatJsonl, TableFile])
def test_folder_in_place_of_a_file(source, tmp_path: Path, mistake_of) -> None:
    assert mistake_of(source(str(tmp_path)).load).startswith(f"{tmp_path}: is a folder")


def test_unknown_table_type(file_of, mistake_of) -> None:
    path = file_of("rows.xlsx", "a")
    assert "'.xlsx'" in mistake_of(TableFile(path).load)


@pytest.mark.parametrize("name", ["rows.csv", "rows.json", "rows.jsonl"])
def test_not_utf8(name: str, file_of, mistake_of) -> None:
    path = file_of(name, 'goal,target\n"caf\u00e9",b\n'.encode("latin-1"))
    assert mistake_of(TableFile(path).load).startswith(path)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ("goal,target\na,b\na\n", "row 2: has another number of fields"),
        ("goal,target\na,b,c\n", "row 1: has another number of fields"),
        ('goal,target\na,b\n"open,b\n', "row 2: cannot be read"),
        # A field of several lines before it does not shift the number.
        ('goal,target\na,"b\nb\nb"\n"open,b\nc,d\n', "row 2: cannot be read"),
        ('goal,target\n"a"x,b\n', "row 1: cannot be read"),
    ],
)
def test_broken_csv(content: str, place: str, file_of, mistake_of) -> None:
    path = file_of("rows.csv", content)
    assert mistake_of(TableFile(path).load).startswith(f"{path} {place}")


@pytest.mark.parametrize("content", ["{", "7", '"a"', "[{]"])
def test_json_that_is_no_list_of_objects(content: str, file_of, mistake_of) -> None:
    path = file_of("rows.json", content)
    assert mistake_of(TableFile(path).load).startswith(path)


def test_json_with_half_a_character(file_of, mistake_of) -> None:
    path = file_of("rows.json", '[{"goal": "\\ud83d", "target": "b"}]')
    assert mistake_of(TableFile(path).load).startswith(f"{path} row 1: holds half a character")


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_empty_prompt(empty: str, file_of, mistake_of) -> None:
    rows = [{"goal": "a", "target": "b"}, {"goal": empty, "target": "b"}]
    path = file_of("rows.jsonl", lines(*rows))
    assert mistake_of(TableFile(path).load).startswith(f"{path} row 2: column 'goal' is empty")


def test_row_that_lacks_a_mapped_column(file_of, mistake_of) -> None:
    rows = [{"goal": "a", "target": "b"}, {"goal": "a", "tarqet": "b"}]
    path = file_of("rows.jsonl", lines(*rows))
    message = mistake_of(TableFile(path, preset="advbench").load)
    assert message.startswith(f"{path} row 2: unknown column 'target' (did you mean 'tarqet'?)")
    assert mistake_of(TableFile(path).load).startswith(f"{path} row 2: ")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ({}, ["no known shape (request, answer)"]),
        ({"preset": "advbensh"}, ["unknown preset 'advbensh'", "did you mean 'advbench'"]),
        ({"preset": "advbench"}, ["unknown column 'goal'", "request, answer"]),
        ({"columns": {"prompt": "reqest"}}, ["'reqest'", "did you mean 'request'"]),
        ({"columns": {"promt": "request"}}, ["unknown field 'promt'", "did you mean 'prompt'"]),
        ({"columns": {"response": "answer"}}, ["columns.prompt"]),
        (
            {"columns": {"prompt": "request"}, "where": {"answr": "b"}},
            ["unknown column 'answr' in where", "did you mean 'answer'"],
        ),
    ],
)
def test_wrong_map(arguments: dict[str, Any], parts: list[str], file_of, mistake_of) -> None:
    path = file_of("rows.csv", "request,answer\na,b\n")
    message = mistake_of(TableFile(path, **arguments).load)
    assert message.startswith(f"{path} row 1: ")
    for part in parts:
        assert part in message


def test_where_that_matches_nothing(file_of, mistake_of) -> None:
    path = file_of("rows.csv", "goal,target\na,b\n")
    message = mistake_of(TableFile(path, where={"goal": "z"}).load)
    assert message.startswith(f"{path}: no row matches")


@pytest.mark.parametrize("limit", [0, -1])
def test_limit_must_be_positive(limit: int, mistake_of) -> None:
    assert str(limit) in mistake_of(ChatJsonl, "rows.jsonl", limit=limit)


# ------------------------------------------------------------------------ cells


@pytest.mark.parametrize(("cell", "kind"), [(["a", "b"], "list"), ({"text": "a"}, "dict")])
@pytest.mark.parametrize("column", ["goal", "target"])
def test_cells_that_are_no_text_are_named(column, cell, kind, file_of, mistake_of) -> None:
    good = {"goal": "a", "target": "b"}
    path = file_of("rows.jsonl", lines(good, {**good, column: cell}))
    message = mistake_of(TableFile(path).load)
    assert message.startswith(f"{path} row 2: column '{column}' holds a {kind}, not text")


def test_an_id_of_a_table_that_is_a_list(file_of, mistake_of) -> None:
    path = file_of("rows.json", json.dumps([{"q": "a", "n": [1]}]))
    message = mistake_of(TableFile(path, columns={"prompt": "q", "id": "n"}).load)
    assert message.startswith(f"{path} row 1: column 'n' holds a list")


def test_numbers_and_booleans_are_text(file_of) -> None:
    rows = [{"goal": 7, "target": 1.5}, {"goal": 0, "target": True}]
    found = TableFile(file_of("rows.jsonl", lines(*rows))).load()
    assert [(r.prompt_text, r.response_text) for r in found] == [("7", "1.5"), ("0", "True")]


def test_nan_is_a_missing_cell(file_of, mistake_of) -> None:
    path = file_of("rows.jsonl", '{"goal": "a", "target": NaN}\n')
    (row,) = TableFile(path).load()
    assert row.response_text is None
    path = file_of("bad.jsonl", '{"goal": NaN, "target": "b"}\n')
    assert mistake_of(TableFile(path).load).startswith(f"{path} row 1: column 'goal' is empty")
    chat = file_of("chat.jsonl", lines({**GOOD, "id": float("nan"), "category": None}))
    (row,) = ChatJsonl(chat).load()
    assert (row.id, row.category) == (None, None)


def test_json_table_that_python_cannot_read(file_of, mistake_of) -> None:
    long = file_of("long.json", '[{"goal": ' + "9" * 5000 + ', "target": "b"}]')
    assert mistake_of(TableFile(long).load).startswith(
        f"{long}: not a JSON file (Exceeds the limit"
    )


# ----------------------------------------------------------------------- header


@pytest.mark.parametrize("arguments", [{}, {"preset": "advbench"}])
def test_a_column_that_stands_twice_in_the_header(arguments, file_of, mistake_of) -> None:
    path = file_of("rows.csv", "goal,target,target\na,b,c\n")
    message = mistake_of(TableFile(path, **arguments).load)
    assert message.startswith(f"{path}: the header has two columns 'target'")


def test_the_header_option_names_a_column_twice(file_of, mistake_of) -> None:
    path = file_of("rows.csv", "a,b\n")
    message = mistake_of(TableFile(path, header=["goal", "goal"]).load)
    assert message.startswith(f"{path}: the header has two columns 'goal'")


def test_the_header_option_needs_a_csv_file(file_of, mistake_of) -> None:
    path = file_of("rows.jsonl", lines({"prompt": "a"}))
    message = mistake_of(TableFile(path, header=["prompt"]).load)
    assert message.startswith(f"{path}: header is for .csv files")


def test_fields_that_the_header_option_does_not_name(file_of, mistake_of) -> None:
    path = file_of("rows.csv", '"one, two"\none, two\n')
    message = mistake_of(TableFile(path, header=["prompt"]).load)
    assert message.startswith(f"{path} row 2: has another number of fields than the header (1)")


def test_a_prompt_taken_for_the_header_makes_a_short_line(file_of, mistake_of) -> None:
    path = file_of("rows.csv", '"how do I\nbake ' + "rye " * 50 + '"\nhow do I bake oat\n')
    message = mistake_of(TableFile(path).load)
    assert "how do I bake rye" in message
    assert "header if the file has no header line" in message
    assert len(message) < len(path) + 300


@pytest.mark.parametrize("further", ["Response", "context", "Input", "System", "reference"])
def test_no_shape_passes_over_what_changes_the_conversation(further, file_of, mistake_of) -> None:
    path = file_of("rows.csv", f"prompt,category,{further}\na,b,c\n")
    message = mistake_of(TableFile(path).load)
    assert message.startswith(f"{path} row 1: ")
    assert f"leaves out {further}" in message
    (row,) = TableFile(path, preset="or_bench").load()
    assert (row.prompt_text, row.category) == ("a", "b")


@pytest.mark.parametrize(
    ("header", "shape", "further"),
    [
        ("prompt,response,output", "prompt_response", "output"),
        ("instruction,output,Response", "instruction_output", "Response"),
        ("question,answer,prompt,response", "prompt_response", "question, answer"),
        ("question,choices,answer", "question_answer", "choices"),
        ("question,passage,answer", "question_answer", "passage"),
        ("instruction,input,output,history", "alpaca", "history"),
        ("instruction,input,output,context", "alpaca", "context"),
        ("instruction,response,input", "instruction_response", "input"),
        ("prompt,completion,goal", "prompt_completion", "goal"),
    ],
)
def test_two_questions_or_answers_are_not_guessed(
    header, shape, further, file_of, mistake_of
) -> None:
    path = file_of("rows.csv", f"{header}\n" + ",".join("a" for _ in header.split(",")) + "\n")
    message = mistake_of(TableFile(path).load)
    assert message.startswith(f"{path} row 1: the columns have the shape {shape}, which leaves out")
    assert f"leaves out {further}; name them, such as columns: {{prompt: text}}" in message
    (row,) = TableFile(path, preset=shape).load()
    assert row.prompt_text.startswith("a")


@pytest.mark.parametrize("header", ["prompt,answer", "goal,note", "text", "id,prompt"])
def test_one_common_column_is_too_little_to_go_by(header, file_of, mistake_of) -> None:
    path = file_of("rows.csv", header + "\n" + ",".join("a" for _ in header.split(",")) + "\n")
    message = mistake_of(TableFile(path).load)
    assert f"the columns are no known shape ({header.replace(',', ', ')})" in message
    assert "columns: {prompt: " in message


# ------------------------------------------------------------------------- skip


def test_skip_must_not_be_negative(mistake_of) -> None:
    message = mistake_of(ChatJsonl, "rows.jsonl", skip=-1)
    assert message == "ChatJsonl: skip must be at least 0, not -1."


def test_skipping_everything_names_the_source(file_of, mistake_of) -> None:
    path = file_of("rows.jsonl", lines(GOOD, GOOD))
    assert len(ChatJsonl(path, skip=1).load()) == 1
    message = mistake_of(ChatJsonl(path, skip=2).load)
    assert message.startswith(f"{path}: skip=2 leaves none of its 2 conversations")
