"""Faulty rows: counted by reason, without any text of theirs, and named one by one."""

from __future__ import annotations

import pickle
from pathlib import Path

from oneshot_lit.data import ChatJsonl, TableFile
from oneshot_lit.errors import RowError

GOOD = '{"messages": [{"role": "user", "content": "hi"}]}\n'


def test_counts_hold_no_text_of_a_row(tmp_path: Path, mistake_of) -> None:
    broken = [f'{{"messages": "{"x" * i}" y\n' for i in range(300)]
    role = '{"messages": [{"role": "my vuke norasi words ' + "z" * 500 + '", "content": "a"}]}\n'
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + "".join(broken) + role)
    source = ChatJsonl(str(path), bad_rows="skip")
    source.load()
    assert source.left_out.reasons == {"not JSON": 300, "unknown role": 1}
    assert str(source.left_out) == (
        f"301 rows left out (300 x not JSON, 1 x unknown role); the first is {path} row 2: not JSON"
    )
    path.write_text(role)
    assert "unknown role 'my vuke norasi words' in turn 1" in mistake_of(ChatJsonl(str(path)).load)


def test_a_colon_in_a_path_parts_no_fault(tmp_path: Path) -> None:
    folder = tmp_path / "a: b"
    folder.mkdir()
    (folder / "rows.jsonl").write_text(GOOD + GOOD.replace("hi", "") * 3)
    source = ChatJsonl(str(folder / "rows.jsonl"), bad_rows="skip")
    source.load()
    assert source.left_out.reasons == {"the user turn is empty": 3}


def test_a_row_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(RowError("a row 1", "no", "; fix it.")))
    assert (str(error), error.origin, error.reason) == ("a row 1: no; fix it.", "a row 1", "no")


def test_one_row_that_is_no_object_does_not_cost_the_others(tmp_path: Path, mistake_of) -> None:
    path = tmp_path / "rows.json"
    path.write_text('[{"goal": "a", "target": "b"}, 5, {"goal": "c", "target": "d"}]')
    assert mistake_of(TableFile(str(path)).load) == f"{path} row 2: must be a JSON object."
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == ["a", "c"]
    assert source.left_out.reasons == {"must be a JSON object": 1}


def test_one_byte_that_is_not_utf8_does_not_cost_the_other_rows(tmp_path, mistake_of) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'goal,target\na,b\nc\xff,d\n"caf\xc3\xa9",f\n')
    assert mistake_of(TableFile(str(path)).load) == f"{path} row 2: not UTF-8 text; re-encode it."
    source = TableFile(str(path), bad_rows="skip")
    assert [r.prompt_text for r in source.load()] == ["a", "caf\u00e9"]
    assert source.left_out.reasons == {"not UTF-8 text": 1}
    path.write_bytes(b"go\xffal,target\na,b\n")
    message = mistake_of(TableFile(str(path), bad_rows="skip").load)
    assert message == f"{path} line 1: not UTF-8 text; re-encode it."
