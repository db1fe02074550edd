"""Files that a hand or another tool has changed: one line with file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from report_folders import add_judge, make_run, write_rows

KEY = "harmful/asr_keyword"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    root = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, None]}})
    add_judge(root, "mine", "harmful", "long_answer", [1.0, None, 0.0])
    return root


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("metrics", KEY), "0.5", f"metrics.{KEY} must be a number or null"),
    ],
)
def test_metrics(command, run: Path, place: tuple[str, ...], value: Any, said: str) -> None:
    content = json.loads((run / "metrics.json").read_text())
    *parents, last = place
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    (run / "metrics.json").write_text(json.dumps(content))
    done = command("report", "--runs", run, "--out", run.parent / "report")
    assert done.code == 2
    assert f"{run / 'metrics.json'}: " in done.error
    assert said in done.error


def test_rows_of_judges(command, run: Path) -> None:
    path = run / "judgments" / "mine.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    del rows[1]["set"]
    write_rows(path, rows)
    done = command("report", "--runs", run, "--out", run.parent / "report")
    assert done.code == 2
    assert f"{path} row 2: needs 'set'" in done.error
