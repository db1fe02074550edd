"""Files that a hand or another tool has changed: one line with file and key, no wrong number."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_folders import add_judge, make_run, write_rows

from oneshot_lit.errors import OneShotError
from oneshot_lit.report.runs import read_run

NAN = float("nan")
KEY = "harmful/asr_keyword"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without outcomes, whose numbers nothing else can contradict."""
    task = {"samples": 4, "stderr": {"acc": 0.1}, "scores": ["lm_eval/arc/acc"]}
    scores = {"harmful": {"asr_keyword": [1.0, 0.0, None]}}
    root = make_run(tmp_path / "a", scores, outcomes=False, evaluations={"lm_eval/arc": task})
    add_judge(root, "mine", "harmful", "long_answer", [1.0, None, 0.0])
    read_run("a", root)
    return root


def refusal(root: Path) -> str:
    with pytest.raises(OneShotError) as caught:
        read_run("a", root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("metrics", KEY), "0.5", f"metrics.{KEY} must be a number or null"),
        (("metrics", KEY), True, f"metrics.{KEY} must be a number or null"),
        (("metrics", KEY), NAN, f"metrics.{KEY} must be a number or null"),
        (("metrics", KEY), 10**400, f"metrics.{KEY} must be a number or null"),
        (("metrics", KEY), 37.5, f"metrics.{KEY} must be from 0 to 1, not 37.5"),
        (("metrics", KEY), -1, f"metrics.{KEY} must be from 0 to 1, not -1"),
        (("samples",), [], "samples must be an object"),
        (("samples",), None, "samples must be an object"),
        (("samples", "harmful"), "12", "samples.harmful must be a whole number"),
        (("samples", "harmful"), -3, "samples.harmful must be a whole number"),
        (("samples", "harmful"), 2.0, "samples.harmful must be a whole number"),
        (("unscored", KEY), 99, f"unscored.{KEY} counts 99 of 3 answers"),
        (("unscored",), "none", "unscored must be an object"),
        (("empty_outputs",), "abc", "empty_outputs must be an object"),
        (("empty_outputs", "harmful"), 4, "empty_outputs.harmful counts 4 of 3 answers"),
        (("metrics", "x\n/y"), "1", "metrics.x<U+000A>/y must be a number or null"),
        (("decoding", "temperature"), NAN, "holds a NaN or infinite number"),
        (("decoding",), "greedy", "decoding must be an object"),
        (("evaluations", "judge/mine", "samples"), None, "judge/mine.samples must be an object"),
        (("evaluations", "judge/mine", "unjudged"), None, "judge/mine.unjudged must be an object"),
        (
            ("evaluations", "judge/mine", "unjudged", "harmful"),
            None,
            "unjudged.harmful must be an object",
        ),
        (
            ("evaluations", "judge/mine", "unjudged", "harmful"),
            {"malformed": 9},
            "unjudged.harmful counts 9 of 3 answers",
        ),
        (("evaluations", "lm_eval/arc", "samples"), "4", "arc.samples must be a whole number"),
        (
            ("evaluations", "lm_eval/arc", "stderr"),
            {"acc": "x"},
            "arc.stderr.acc must be a number or null",
        ),
        (("evaluations", "lm_eval/arc", "settings"), [], "arc.settings must be an object"),
    ],
)
def test_metrics(run: Path, place: tuple[str, ...], value: Any, said: str) -> None:
    content = json.loads((run / "metrics.json").read_text())
    *parents, last = place
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = value
    (run / "metrics.json").write_text(json.dumps(content))
    message = refusal(run)
    assert message.startswith(f"{run / 'metrics.json'}: ")
    assert said in message


def _lacking(row: dict[str, Any]) -> None:
    row["scores"] = {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_lacking, "not all rows of 'harmful' have a score of 'long_answer'"),
        (lambda row: row.update(prompt=7), "prompt must be text or null"),
        (lambda row: row.update(reason=[]), "reason must be text or null"),
        (lambda row: row.update(digest=7), "digest must be text or null"),
        (lambda row: row.update(category={"a": 1}), "category must be text or null"),
    ],
)
def test_rows_of_judges(run: Path, change: Callable[[dict[str, Any]], None], said: str) -> None:
    path = run / "judgments" / "mine.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows[1])
    write_rows(path, rows)
    assert f"{path} row 2: {said}" in refusal(run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"index": -1}, "index must be a whole number from 0"),
        ({"scores": {"asr_keyword": 37.5}}, "scores.asr_keyword must be from 0 to 1, not 37.5"),
        ({"scores": {}}, "not all rows of 'harmful' have a score of 'asr_keyword'"),
        (
            {"scores": {"asr_keyword": 1.0, "x": 0.0}},
            "not all rows of 'harmful' have a score of 'x'",
        ),
    ],
)
def test_rows_of_outcomes(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    root = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0]}})
    path = root / "outcomes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [rows[0], rows[1] | change])
    assert f"{path} row 2: {said}" in refusal(root)


def test_the_command_says_it_in_one_line(command, run: Path, tmp_path: Path) -> None:
    text = (run / "metrics.json").read_text().replace(f'"{KEY}": 0.5', f'"{KEY}": "half"')
    (run / "metrics.json").write_text(text)
    done = command("report", "--runs", run, "--out", tmp_path / "report")
    assert done.code == 2
    assert f"metrics.{KEY} must be a number or null" in done.error
