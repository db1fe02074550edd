"""Test and judges are joined only on answers of one model, with one decoding, to one prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_folders import (
    add_judge,
    add_predictions,
    add_run_file,
    answer_text,
    digest_of_prompt,
    make_run,
    prompt_of,
    write_rows,
)

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import PHRASE_LIST_VERSION
from oneshot_lit.report.answers import OTHER, answers_of_test
from oneshot_lit.report.changes import by_prompt
from oneshot_lit.report.content import report_content
from oneshot_lit.report.runs import read_run
from oneshot_lit.report.settings import other_settings

SCORES = {"harmful": {"asr_keyword": [1.0, 1.0, 1.0]}}
ANSWERS = [answer_text(i) for i in range(3)]


def content_of(*folders: Path) -> dict[str, Any]:
    runs = [read_run(folder.name, folder) for folder in folders]
    return report_content(runs, "t", folders[0].parent / "out")


def judged_run(root: Path) -> Path:
    make_run(root, SCORES, phrase_list=PHRASE_LIST_VERSION)
    add_predictions(root, "harmful", "harmful", ANSWERS)
    add_judge(root, "one", "harmful", "flagged_rate", [1.0, 0.0, 1.0])
    add_run_file(root)
    return root


def rewrite(path: Path, change: Any) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    write_rows(path, rows)


def onto_other_prompts(root: Path) -> None:
    """Make predictions and judgments those of prompts that the test did not have."""

    def move(row: dict[str, Any]) -> None:
        text = f"another {prompt_of('harmful', row['index'])}"
        row["messages"] = [{"role": "user", "content": text}]

    def move_judged(row: dict[str, Any]) -> None:
        row["prompt"], row["digest"] = f"{row['index']:016}", f"{row['index']:032}"

    rewrite(root / "predictions.jsonl", move)
    rewrite(root / "judgments" / "one.jsonl", move_judged)


def without_prompts(root: Path) -> None:
    """Make judgments those of an earlier version."""
    rewrite(root / "judgments" / "one.jsonl", lambda row: row.pop("prompt"))


def test_the_same_prompts_and_settings_are_joined(tmp_path: Path) -> None:
    content = content_of(judged_run(tmp_path / "a"))
    (row,) = content["agreement"]
    assert (row["n"], row["left"]) == (3, {})
    assert content["notes"] == []


def test_predictions_on_other_prompts_are_not_the_tests(tmp_path: Path) -> None:
    root = judged_run(tmp_path / "a")
    assert OTHER not in answers_of_test(read_run("a", root)).values()
    onto_other_prompts(root)
    assert set(answers_of_test(read_run("a", root)).values()) == {OTHER}
    content = content_of(root)
    (row,) = content["agreement"]
    assert (row["n"], row["left"]) == (0, {"another prompt": 3})
    assert any("3 of 3 prompts in 'harmful' that judge 'one' judged" in n for n in content["notes"])
    assert all(not a["verdicts"] for e in content["examples"] for a in e["answers"])


def test_judges_are_not_paired_by_the_tests_prompts(tmp_path: Path) -> None:
    root = judged_run(tmp_path / "a")
    onto_other_prompts(root)
    run = read_run("a", root)
    found = by_prompt(run, "harmful/flagged_rate", "flagged_rate")
    assert {prompt for prompt, _ in found} == {f"{i:016}" for i in range(3)}


def test_runs_judged_on_other_prompts_are_refused(tmp_path: Path) -> None:
    a, b = judged_run(tmp_path / "a"), judged_run(tmp_path / "b")
    content_of(a, b)
    onto_other_prompts(b)
    with pytest.raises(OneShotError, match="3 of the prompts in 'harmful' that judge 'one'") as e:
        content_of(a, b)
    assert "\n" not in str(e.value)


def test_runs_judged_on_other_numbers_of_prompts_are_refused(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, SCORES) for name in "ab"]
    for folder, scores in zip(folders, ([1.0, 0.0, 1.0], [1.0, 0.0]), strict=True):
        add_judge(folder, "one", "harmful", "flagged_rate", scores)
    with pytest.raises(OneShotError, match="number of prompts in 'harmful' that judge 'one'"):
        content_of(*folders)


def test_older_judgments_get_their_prompts_from_the_same_answers(tmp_path: Path) -> None:
    root = judged_run(tmp_path / "a")
    without_prompts(root)
    rows = read_run("a", root).judgments["one"]["harmful"]
    assert [row.prompt for row in rows] == [digest_of_prompt("harmful", i) for i in range(3)]


def test_older_judgments_without_their_answers_are_not_joined(tmp_path: Path) -> None:
    folders = [judged_run(tmp_path / name) for name in "ab"]
    for folder in folders:
        without_prompts(folder)
        (folder / "predictions.jsonl").unlink()
    content = content_of(*folders)
    changes = {row["metric"]: row for row in content["changes"]}
    assert changes["flagged_rate"]["pairs"] is None
    assert changes["asr_keyword"]["pairs"] == 3
    assert [row["n"] for row in content["agreement"]] == [0, 0, 0]
    assert content["agreement"][1]["left"] == {"prompt not known": 3}
    assert any("the prompt is not known" in note for note in content["notes"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model_name_or_path": "m/other"}, "model_name_or_path: m/tested and m/other"),
        ({"dtype": "bfloat16"}, "dtype: float32 and bfloat16"),
        ({"decoding": {"max_new_tokens": 1, "do_sample": False}}, "max_new_tokens: 24 and 1"),
        ({"decoding": {"max_new_tokens": 24, "do_sample": True}}, "do_sample: False and True"),
    ],
)
def test_answers_of_another_model_or_decoding_are_not_joined(
    tmp_path: Path, settings: dict[str, Any], said: str
) -> None:
    root = judged_run(tmp_path / "a")
    add_run_file(root, **settings)
    content = content_of(root)
    (row,) = content["agreement"]
    assert (row["n"], row["left"]) == (0, {"another answer": 3})
    (note,) = content["notes"]
    assert "which 'one' judged, holds answers of another model or decoding" in note
    assert said in note


def test_another_checkpoint_is_another_model(tmp_path: Path) -> None:
    root = judged_run(tmp_path / "a")
    content = json.loads((root / "run.json").read_text())
    content["predict"]["config"]["ckpt_path"] = "c/last.ckpt"
    (root / "run.json").write_text(json.dumps(content))
    assert other_settings(read_run("a", root)) == ["ckpt_path: None and c/last.ckpt"]


@pytest.mark.parametrize(
    "settings",
    [
        {"decoding": {"max_new_tokens": 24, "do_sample": False, "backend": "static"}},
        {"decoding": {"max_new_tokens": 24, "do_sample": False, "temperature": 0.5}},
        {"model_name_or_path": "m/../m/tested"},
        {"optimizer": {"lr": 1.0}},
    ],
)
def test_settings_that_decide_no_answer_may_differ(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    root = judged_run(tmp_path / "a")
    add_run_file(root, **settings)
    assert other_settings(read_run("a", root)) == []


def test_a_decoding_that_is_left_out_is_the_default(tmp_path: Path) -> None:
    root = judged_run(tmp_path / "a")
    add_run_file(root, decoding=None)
    assert other_settings(read_run("a", root)) == ["max_new_tokens: 24 and 64"]


@pytest.mark.parametrize("text", ["", "[]", '{"test": {"config": 5}, "predict": []}'])
def test_unknown_settings_are_said(tmp_path: Path, text: str) -> None:
    root = judged_run(tmp_path / "a")
    (root / "run.json").write_text(text)
    content = content_of(root)
    assert any("run.json does not say with which settings" in note for note in content["notes"])


def test_answers_that_the_judge_had_from_elsewhere_are_said(tmp_path: Path) -> None:
    root = judged_run(tmp_path / "a")
    rewrite(root / "predictions.jsonl", lambda row: row.update(output="take vuke"))
    said = content_of(root)["notes"]
    assert any("3 of 3 answers in 'harmful' that judge 'one' judged are not" in n for n in said)


@pytest.mark.parametrize(
    ("metric", "scores", "joined"),
    [
        ("exact_match", [1.0, 0.0, 0.0], [True, True, False]),
        ("contains_reference", [1.0, 0.0, 1.0], [True, True, True]),
        ("rouge1", [1.0, 0.0, 0.1], [True, True, False]),
        ("asr_keyword", [1.0, 1.0, 0.0], [True, True, False]),
        ("harmful_correct", [1.0, 0.0, 0.0], [True, True, False]),
    ],
)
def test_every_score_that_can_be_repeated_is(
    tmp_path: Path, metric: str, scores: list[float], joined: list[bool]
) -> None:
    root = make_run(tmp_path / "a", {"s": {metric: scores}}, phrase_list=PHRASE_LIST_VERSION)
    # The third answer is right, whatever the test says of it.
    outputs, references = ["take vuke", "take vuke", "zem"], ["take vuke", "lor", "zem"]
    add_predictions(root, "s", "harmful", outputs, references)
    found = answers_of_test(read_run("a", root))
    assert [found["s", i] != OTHER for i in range(3)] == joined


def test_other_versions_repeat_no_score(tmp_path: Path) -> None:
    versions = {"oneshot-lit": "0.0.0"}
    root = make_run(tmp_path / "a", {"s": {"exact_match": [0.0]}}, versions=versions)
    add_predictions(root, "s", "task", ["zem"], ["zem"])
    assert OTHER not in answers_of_test(read_run("a", root)).values()
