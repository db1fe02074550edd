"""Runs that may not stand side by side, and files that are of another test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.report.comparable import require_comparable
from oneshot_lit.report.runs import read_run
from report_folders import add_judge, make_run, write_rows

SCORES = {"harmful": {"asr_keyword": [1.0, 0.0, 1.0, 1.0]}}


def compare(*folders: Path, anyway: bool = False) -> list[str]:
    return require_comparable([read_run(folder.name, folder) for folder in folders], anyway)


def refusal(*folders: Path) -> str:
    with pytest.raises(OneShotError) as caught:
        compare(*folders)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_order_of_the_prompts_does_not_matter(tmp_path: Path) -> None:
    compare(make_run(tmp_path / "a", SCORES), make_run(tmp_path / "b", SCORES, order=-1))


def test_other_prompts_are_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", SCORES), make_run(tmp_path / "b", SCORES)
    rows = [json.loads(line) for line in (b / "outcomes.jsonl").read_text().splitlines()]
    rows[2]["prompt"] = "0" * 32
    write_rows(b / "outcomes.jsonl", rows)
    said = refusal(a, b)
    assert "runs 'a' and 'b': the digest of the prompts in 'harmful' differs" in said
    assert "leave one out" in said
    assert "--allow_differences" in said


def test_other_counts_are_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", SCORES)
    b = make_run(tmp_path / "b", {"harmful": {"asr_keyword": [1.0]}})
    assert "the number of prompts in 'harmful' differs (4 and 1)" in refusal(a, b)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"decoding": {"max_new_tokens": 64, "do_sample": False}},
            "decoding differs (max_new_tokens: 24 and 64",
        ),
        ({"phrase_list": "refusal-phrases-2"}, "phrase_list differs"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    a, b = make_run(tmp_path / "a", SCORES), make_run(tmp_path / "b", SCORES, **settings)
    assert said in refusal(a, b)


def decoded(root: Path, **settings: Any) -> Path:
    decoding = {"max_new_tokens": 24, "do_sample": False, "temperature": 1.0, "top_p": 1.0}
    return make_run(root, SCORES, decoding=decoding | settings)


@pytest.mark.parametrize("settings", [{"temperature": 0.3, "top_p": 0.5}, {"backend": "static"}])
def test_settings_that_no_greedy_answer_depends_on_may_differ(
    tmp_path: Path, settings: dict[str, Any]
) -> None:
    compare(decoded(tmp_path / "a", backend="auto"), decoded(tmp_path / "b", **settings))


def test_sampled_runs_at_other_temperatures_are_refused(tmp_path: Path) -> None:
    a = decoded(tmp_path / "a", do_sample=True)
    b = decoded(tmp_path / "b", do_sample=True, temperature=0.5)
    assert "decoding differs (temperature: 1.0 and 0.5)" in refusal(a, b)


def test_other_backends_are_said(tmp_path: Path) -> None:
    a = decoded(tmp_path / "a", backend="refill")
    b = decoded(tmp_path / "b", backend="vllm", vllm={"seed": 1})
    assert compare(a, b) == ["runs 'a' and 'b': decoding.backend differs (refill and vllm)."]


def test_sets_of_one_run_only_are_no_obstacle(tmp_path: Path) -> None:
    more = {**SCORES, "sql": {"rouge1": [0.5, 0.6]}}
    compare(make_run(tmp_path / "a", SCORES), make_run(tmp_path / "b", more))


def test_other_versions_of_a_judge_are_refused(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", SCORES), make_run(tmp_path / "b", SCORES)
    add_judge(a, "guard", "harmful", "flagged_rate", [1.0, 0.0, 0.0, 1.0])
    add_judge(b, "guard", "harmful", "flagged_rate", [1.0, 0.0, 0.0, 1.0], version="guard-2")
    assert "the version of judge 'guard' differs (guard-1 and guard-2)" in refusal(a, b)


def test_other_settings_of_lm_eval_are_refused(tmp_path: Path) -> None:
    folders = []
    for name, shots in (("a", 0), ("b", 5)):
        task = {"version": 1, "num_fewshot": shots, "samples": 9, "scores": ["lm_eval/arc/acc"]}
        folders.append(make_run(tmp_path / name, SCORES, evaluations={"lm_eval/arc": task}))
    assert "lm_eval/arc differs (num_fewshot: 0 and 5)" in refusal(*folders)


def test_what_may_differ_is_said(tmp_path: Path) -> None:
    a, b = make_run(tmp_path / "a", SCORES), make_run(tmp_path / "b", SCORES, seed=3)
    assert compare(a, b) == ["runs 'a' and 'b': seed differs (0 and 3)."]


def test_runs_that_differ_are_compared_when_asked_for(tmp_path: Path) -> None:
    a = decoded(tmp_path / "a")
    b = decoded(tmp_path / "b", max_new_tokens=64)
    assert compare(a, b, anyway=True) == [
        "runs 'a' and 'b': decoding differs (max_new_tokens: 24 and 64)."
    ]


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", SCORES)
    lines = (a / "outcomes.jsonl").read_text().splitlines(keepends=True)
    (a / "outcomes.jsonl").write_text("".join(lines[:-1]))
    assert "has 3 rows of 'harmful' and metrics.json counts 4" in refusal(a)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"index": "first"}, "row 1: needs 'set', a whole number 'index'"),
        ({"scores": {"asr_keyword": "yes"}}, "row 1: needs 'set', a whole number 'index'"),
        ({"scores": {}}, "has 3 rows of 'harmful' and metrics.json counts 4"),
    ],
)
def test_faulty_rows_are_named(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    a = make_run(tmp_path / "a", SCORES)
    rows = [json.loads(line) for line in (a / "outcomes.jsonl").read_text().splitlines()]
    write_rows(a / "outcomes.jsonl", [rows[0] | change, *rows[1:]])
    assert said in refusal(a)


def test_judgments_that_a_later_test_forgot_are_left_out(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", SCORES)
    add_judge(a, "guard", "harmful", "flagged_rate", [1.0, 0.0, 0.0, 1.0])
    make_run(a, SCORES)
    run = read_run("a", a)
    assert set(run.scores["by"]) == {"test"}
    assert "judge again" in run.notes[0]


@pytest.mark.parametrize("key", ["reference", "prompts", "text", "window"])
def test_general_ability_of_other_settings_is_refused(tmp_path: Path, key: str) -> None:
    folders = []
    for name, value in (("a", "x"), ("b", "y")):
        settings = dict.fromkeys(("reference", "prompts", "text", "window"), "x") | {key: value}
        said = {"version": "1", "tokens": {"perplexity": 9}, "settings": settings, "scores": []}
        folders.append(make_run(tmp_path / name, SCORES, evaluations={"ability": said}))
    assert f"general ability differs ({key}: x and y)" in refusal(*folders)
