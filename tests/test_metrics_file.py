"""Scores of later evaluations join those of the test."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.metrics_file import METRICS_FILE, merge_scores, read_metrics


def test_a_later_evaluation_adds_its_scores(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text('{"metrics": {"a/x": 0.5}, "seed": 3}')
    merge_scores(tmp_path, "judge", {"a/y": 0.25, "b/y": float("nan")}, {"version": "1"})
    content = json.loads((tmp_path / METRICS_FILE).read_text())
    assert content["metrics"] == {"a/x": 0.5, "a/y": 0.25}
    assert content["seed"] == 3
    assert content["evaluations"] == {"judge": {"version": "1", "scores": ["a/y", "b/y"]}}


def test_the_same_evaluation_replaces_its_own(tmp_path: Path) -> None:
    merge_scores(tmp_path, "judge", {"a/y": 0.25, "b/y": 1.0}, {})
    merge_scores(tmp_path, "other", {"a/z": 0.75}, {})
    merge_scores(tmp_path, "judge", {"a/y": 0.5}, {})
    assert read_metrics(tmp_path)["metrics"] == {"a/z": 0.75, "a/y": 0.5}


def test_no_evaluation_takes_anothers_name(tmp_path: Path) -> None:
    merge_scores(tmp_path, "judge", {"a/y": 0.25}, {})
    before = (tmp_path / METRICS_FILE).read_bytes()
    with pytest.raises(OneShotError, match=r"'a/y' is there already"):
        merge_scores(tmp_path, "other", {"a/y": 0.5}, {})
    assert (tmp_path / METRICS_FILE).read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": 3}', '{"evaluations": []}'])
def test_a_foreign_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(text)
    with pytest.raises(OneShotError, match="run the test again"):
        merge_scores(tmp_path, "judge", {"a/y": 0.25}, {})
    assert (tmp_path / METRICS_FILE).read_text() == text
