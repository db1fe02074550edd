"""Files that a hand or another tool has changed: one line with file and key."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from report_folders import add_judge, make_run, write_rows


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, None]}})
    add_judge(root, "mine", "harmful", "long_answer", [1.0, None, 0.0])
    return root


def test_rows_of_judges(command, run: Path) -> None:
    path = run / "judgments" / "mine.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[1]["set"]
    write_rows(path, rows)
    done = command("report", "--runs", run, "--out", run.parent / "report")
    assert done.code == 2
    assert f"{path} row 2: needs 'set'" in done.error
