"""Task scores of a real model: each in `metrics.json`, and the same from its written answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from oneshot_lit.evaluation.metrics import METRICS, TextScore

NAMES = ["exact_match", "contains_reference", "rouge1", "rougeL", "sql_match"]


def sets(*metrics: str) -> dict[str, object]:
    source = {
        "class_path": "oneshot_lit.data.Microworld",
        "init_args": {"split": "sql_heldout", "limit": 6},
    }
    return {"sql": {"kind": "task", "metrics": list(metrics), "source": source}}


def words(tmp_path: Path, *metrics: str) -> list[str]:
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump(sets(*metrics)))
    return [
        *("--config", "configs/evaluate/microworld.yaml"),
        *("--model.model_name_or_path", "checkpoints/small", "--trainer.accelerator", "cpu"),
        *("--data.test_sets", str(tmp_path / "sets.yaml")),
        *("--trainer.default_root_dir", str(tmp_path / "run")),
        *("--trainer.enable_progress_bar", "false"),
    ]


def test_task_scores_are_those_of_the_written_answers(command, tmp_path: Path) -> None:
    for verb in ("test", "predict"):
        done = command(verb, *words(tmp_path, *NAMES))
        assert done.code == 0, done.err
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    lines = (tmp_path / "run" / "predictions.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len(rows) == 6
    for name in NAMES:
        scores = METRICS[name]().scores(
            [row["output"] for row in rows], [row["reference"] for row in rows]
        )
        assert content["metrics"][f"sql/{name}"] == pytest.approx(sum(scores) / 6, abs=1e-15)
    assert content["metrics"]["sql/rouge1"] > 0.5
    assert content["unscored"] == {}
    assert {"torchmetrics", "sqlglot"} <= set(content["versions"])


def test_answers_that_cannot_be_scored_are_counted(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class SomeAnswers(TextScore):
        def scores(self, outputs, references):
            return [float("nan") if "title" in o else 0.25 for o in outputs]

    class NoAnswer(TextScore):
        def scores(self, outputs, references):
            return [float("nan")] * len(outputs)

    monkeypatch.setitem(METRICS, "some", SomeAnswers)
    monkeypatch.setitem(METRICS, "none", NoAnswer)
    done = command("test", *words(tmp_path, "some"))
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert content["metrics"] == {"sql/some": 0.25}
    assert 0 < content["unscored"]["sql/some"] < 6

    done = command("test", *words(tmp_path, "none"), "--overwrite", "true")
    assert done.code == 2
    assert "sql/none is nan: none of its answers could be scored" in done.error
