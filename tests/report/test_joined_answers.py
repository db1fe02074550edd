"""Verdicts are joined only on the same answer to the same prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.errors import OneShotError
from report_folders import add_judge, add_predictions, answer_text, make_run, report_of, write_rows

SCORES = {"harmful": {"asr_keyword": [1.0, 1.0, 1.0]}}


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    return judged_run(tmp_path / "a")


def judged_run(root: Path) -> Path:
    make_run(root, SCORES)
    add_predictions(root, "harmful", "harmful", [answer_text(i) for i in range(3)])
    add_judge(root, "one", "harmful", "flagged_rate", [1.0, 0.0, 1.0])
    return root


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    write_rows(path, rows)


def onto_other_prompts(row: dict[str, Any]) -> None:
    row["prompt"], row["digest"] = f"{row['index']:016}", f"{row['index']:032}"


def test_the_same_answers_are_joined(judged: Path) -> None:
    content = report_of(judged)
    (row,) = content["agreement"]
    assert (row["judges"], row["n"], row["left_out"]) == (
        "asr_keyword (test) / flagged_rate",
        3,
        0,
    )
    assert content["notes"] == []
    (first, second) = content["examples"]
    assert first["answers"][0]["verdicts"] == {"asr_keyword": 1.0, "flagged_rate": 1.0}
    assert second["answers"][0]["verdicts"] == {"asr_keyword": 1.0, "flagged_rate": 0.0}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (onto_other_prompts, 3),
        # Another model, another decoding or sampling, as the answers tell.
        (lambda row: row.update(digest="0" * 32), 3),
        # A judge of an earlier version names no prompt, and the answer is enough.
        (lambda row: row.pop("prompt"), 0),
    ],
)
def test_judgments_of_other_answers_are_left_out(
    judged: Path, change: Callable[[dict[str, Any]], Any], left: int
) -> None:
    rewrite(judged / "judgments" / "one.jsonl", change)
    (row,) = report_of(judged)["agreement"]
    assert (row["n"], row["left_out"]) == (3 - left, left)


def test_outcomes_of_an_earlier_version_are_joined_with_no_judge(judged: Path) -> None:
    rewrite(judged / "outcomes.jsonl", lambda row: row.pop("digest"))
    (row,) = report_of(judged)["agreement"]
    assert (row["n"], row["left_out"]) == (0, 3)


def test_examples_show_only_verdicts_on_the_answer_shown(judged: Path) -> None:
    rewrite(judged / "predictions.jsonl", lambda row: row.update(output="take vuke"))
    for example in report_of(judged)["examples"]:
        assert example["answers"][0]["verdicts"] == {}


def test_runs_judged_on_other_prompts_are_refused(tmp_path: Path) -> None:
    a, b = judged_run(tmp_path / "a"), judged_run(tmp_path / "b")
    report_of(a, b)
    rewrite(b / "judgments" / "one.jsonl", onto_other_prompts)
    with pytest.raises(OneShotError, match="the prompts in 'harmful' that judge 'one'") as e:
        report_of(a, b)
    assert "\n" not in str(e.value)
    # Where that is allowed, none of its verdicts is paired.
    changes = {row["metric"]: row for row in report_of(a, b, allow_differences=True)["changes"]}
    assert changes["flagged_rate"]["pairs"] is None
    assert changes["asr_keyword"]["pairs"] == 3


def test_runs_judged_on_other_numbers_of_prompts_are_refused(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, SCORES) for name in "ab"]
    for folder, scores in zip(folders, ([1.0, 0.0, 1.0], [1.0, 0.0]), strict=True):
        add_judge(folder, "one", "harmful", "flagged_rate", scores)
    with pytest.raises(OneShotError, match="number of prompts in 'harmful' that judge 'one'"):
        report_of(*folders)


def test_judgments_without_prompts_are_in_no_pair(tmp_path: Path) -> None:
    folders = [judged_run(tmp_path / name) for name in "ab"]
    for folder in folders:
        rewrite(folder / "judgments" / "one.jsonl", lambda row: row.pop("prompt"))
    changes = {row["metric"]: row for row in report_of(*folders)["changes"]}
    assert changes["flagged_rate"]["pairs"] is None
    assert changes["asr_keyword"]["pairs"] == 3
