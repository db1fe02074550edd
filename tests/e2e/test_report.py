"""The report on what test, predict and judge really write."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

FILES = ["report.html", "report.json", "report.md", "table.csv", "table.tex"]


def prompt_sets(harmful: str = "harmful_dev") -> dict[str, Any]:
    splits = {"harmful": harmful, "benign": "benign_dev"}
    return {
        kind: {
            "kind": kind,
            "source": {
                "class_path": "oneshot_lit.data.Microworld",
                "init_args": {"split": split, "limit": 8},
            },
        }
        for kind, split in splits.items()
    }


def run(command, verb: str, model: str, root: Path, sets: dict[str, Any], *words: str) -> None:
    file = root.parent / "sets.yaml"
    file.write_text(yaml.safe_dump(sets))
    done = command(
        verb,
        *("--config", "configs/evaluate/microworld.yaml", "--data.test_sets", file),
        *("--model.model_name_or_path", f"checkpoints/{model}"),
        *("--trainer.default_root_dir", root, "--trainer.accelerator", "cpu"),
        *("--trainer.enable_progress_bar", "false", *words),
    )
    assert done.code == 0, done.err


def judge(command, root: Path) -> None:
    done = command("judge", "--config", "configs/judge/keyword.yaml", "--run", root)
    assert done.code == 0, done.err


def report(command, out: Path, *words: Any) -> dict[str, Any]:
    done = command("report", "--out", out, "--runs", *words)
    assert done.code == 0, done.err
    return json.loads((out / "report.json").read_text())


def agreement_with_judge(content: dict[str, Any]) -> dict[str, Any]:
    """Return the agreement of the test's own verdicts with those of the keyword judge."""
    wanted = "asr_keyword (test) / asr_phrases"
    (row,) = (r for r in content["agreement"] if r["judges"] == wanted)
    return row


@pytest.mark.slow
def test_report_of_real_runs(command, tmp_path: Path) -> None:
    small, medium = tmp_path / "small", tmp_path / "medium"
    run(command, "test", "small", small, prompt_sets())
    run(command, "predict", "small", small, prompt_sets())
    judge(command, small)
    run(command, "test", "medium", medium, prompt_sets())
    content = report(command, tmp_path / "report", small, medium)
    _require_values(tmp_path / "report", content, [small, medium])
    # What judged the same answers by the same phrases agrees with the test on each of them.
    judged = agreement_with_judge(content)
    assert (judged["n"], judged["left_out"], judged["agreement"]) == (8, 0, 1.0)
    assert {row["pairs"] for row in content["changes"]} == {8}
    assert not any("small: " in note for note in content["notes"])
    _require_outputs_only_with_the_flag(command, tmp_path, small)

    # Answers of a later predict to other prompts are no longer joined with the test.
    other = tmp_path / "other_prompts"
    shutil.copytree(small, other)
    run(command, "predict", "small", other, prompt_sets("harmful_heldout"), "--overwrite", "true")
    judge(command, other)
    row = agreement_with_judge(report(command, tmp_path / "other", other))
    assert (row["n"], row["left_out"]) == (0, 8)
    words = ["report", "--out", tmp_path / "no", "--runs", small, other]
    done = command(*words)
    assert done.code == 2
    assert "the prompts in 'harmful' that judge 'keyword' judged" in done.error
    assert command(*words, "--allow_differences").code == 0
    assert "that judge 'keyword' judged" in (tmp_path / "no" / "report.md").read_text()


def _require_values(out: Path, content: dict[str, Any], roots: list[Path]) -> None:
    """Every table holds the values of metrics.json, and no other."""
    assert sorted(file.name for file in out.glob("*.*")) == FILES
    expected = {
        (*key.split("/"), root.name): value
        for root in roots
        for key, value in json.loads((root / "metrics.json").read_text())["metrics"].items()
    }
    assert len(expected) > 8
    shown = {(row["set"], row["metric"], row["run"]): row["value"] for row in content["scores"]}
    assert shown == pytest.approx(expected)
    with (out / "table.csv").open() as file:
        lines = {(r["set"], r["metric"], r["run"]): float(r["value"]) for r in csv.DictReader(file)}
    assert lines == pytest.approx(expected)
    texts = {name: (out / name).read_text() for name in ("report.html", "report.md", "table.tex")}
    for (_, metric, _), value in expected.items():
        for name, text in texts.items():
            assert metric.replace("_", r"\_" if name != "report.html" else "_") in text
            assert f"{value:.3f}" in text


def _require_outputs_only_with_the_flag(command, tmp_path: Path, root: Path) -> None:
    lines = (root / "predictions.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["set"] == "harmful"]
    prompts = [row["messages"][-1]["content"] for row in rows]
    # A word or two may stand anywhere.
    long = [o for row in map(json.loads, lines) if len((o := row["output"]).split()) > 2]
    assert long
    for file in (tmp_path / "report").glob("*.*"):
        text = file.read_text()
        assert not any(hidden in text for hidden in (*prompts, *long))
    report(command, tmp_path / "shown", root, "--show_outputs")
    for name in ("report.html", "report.md", "report.json"):
        text = (tmp_path / "shown" / name).read_text()
        assert any(row["output"] in text for row in rows)
        assert any(prompt in text for prompt in prompts)
