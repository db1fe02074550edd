"""Faulty rows: counted by kind, without any text of theirs, and named one by one."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from oneshot_lit.data import ChatJsonl, TableFile
from oneshot_lit.errors import OneShotError, RowError

GOOD = '{"messages": [{"role": "user", "content": "hi"}]}\n'


def test_the_account_holds_no_text_and_few_kinds(tmp_path: Path, mistake_of) -> None:
    broken = [f'{{"messages": "{"x" * i}" y\n' for i in range(300)]
    role = '{"messages": [{"role": "my vuke norasi words ' + "z" * 500 + '", "content": "a"}]}\n'
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + "".join(broken) + role)
    source = ChatJsonl(str(path), bad_rows="skip")
    source.load()
    assert source.tally.faulty == {"not JSON": 300, "unknown role": 1}
    assert "vuke" not in json.dumps(source.tally.as_dict())
    (remark,) = source.tally.remarks
    assert remark == (
        "301 of 302 rows skipped (300 x not JSON, 1 x unknown role); "
        f"the first is {path} row 2: not JSON"
    )
    path.write_text(role)
    assert "unknown role 'my vuke norasi wo...' in turn 1" in mistake_of(ChatJsonl(str(path)).load)


def test_a_colon_in_a_path_parts_no_fault(tmp_path: Path) -> None:
    folder = tmp_path / "a: b"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(GOOD + GOOD.replace("hi", "") * 3)
    source = ChatJsonl(str(folder / "rows.jsonl"), bad_rows="skip")
    source.load()
    assert source.tally.faulty == {"the user turn is empty": 3}


def test_a_remark_names_the_most_frequent_kinds_alone() -> None:
    source = ChatJsonl("rows.jsonl", bad_rows="skip")
    for number in range(9):
        for _ in range(number + 1):
            source.bad(RowError("rows.jsonl row 1: ...", "rows.jsonl row 1", f"kind {number}"))
    source.tally.read = 45
    (remark,) = source.tally.remarks
    assert "(9 x kind 8, 8 x kind 7, 7 x kind 6, 6 x kind 5, 5 more kinds)" in remark


def test_a_fault_of_a_source_of_ones_own_is_counted_without_its_text() -> None:
    source = ChatJsonl("rows.jsonl", bad_rows="skip")
    source.bad(OneShotError("rows.jsonl row 7: the vuke is cold."))
    assert sum(source.tally.faulty.values()) == 1
    assert "vuke" not in json.dumps(source.tally.as_dict())


def test_a_row_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RowError("a row 1: no.", "a row 1", "no")))
    assert (str(error), error.origin, error.kind) == ("a row 1: no.", "a row 1", "no")


@pytest.mark.parametrize(
    "row",
    [
        '{"goal": "a", "goal": "b", "target": "c"}',
        '{"goal": "a", "target": "b", "note": [{"x": {"y": 1, "y": 1}}]}',
    ],
)
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_a_key_twice_is_a_fault(name: str, row: str, tmp_path: Path, mistake_of) -> None:
    good = '{"goal": "a", "target": "b"}'
    text = f"[{good}, {row}]" if name == "rows.json" else f"{good}\n{row}\n"
    path = tmp_path / name
    path.write_text(text)
    message = mistake_of(TableFile(str(path)).load)
    assert message.startswith(f"{path} row 2: names a key twice ('")
    source = TableFile(str(path), bad_rows="skip")
    assert len(source.load()) == 1
    assert source.tally.faulty == {"names a key twice": 1}


def test_one_row_that_is_no_object_does_not_cost_the_others(tmp_path: Path, mistake_of) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"goal": "a", "target": "b"}, 5, {"goal": "c", "target": "d"}]')
    assert mistake_of(TableFile(str(path)).load) == f"{path} row 2: must be a JSON object."
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == ["a", "c"]
    assert (source.tally.read, source.tally.faulty) == (3, {"must be a JSON object": 1})


def test_one_byte_that_is_not_utf8_does_not_cost_the_other_rows(tmp_path, mistake_of) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'goal,target\na,b\nc\xff,d\n"caf\xc3\xa9",f\n')
    assert mistake_of(TableFile(str(path)).load) == f"{path} row 2: not UTF-8 text; re-encode it."
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == ["a", "caf\u00e9"]
    assert source.tally.faulty == {"not UTF-8 text": 1}
    path.write_bytes(b"go\xffal,target\na,b\n")
    message = mistake_of(TableFile(str(path), bad_rows="skip").load)
    assert message == f"{path} line 1: not UTF-8 text; re-encode it."
