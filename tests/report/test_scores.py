"""Scores, categories, changes, agreement and what is said of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_folders import add_judge, add_predictions, answer_text, make_run, write_rows

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.intervals import wilson
from oneshot_lit.evaluation.metrics.refusal import PHRASE_LIST_VERSION
from oneshot_lit.report.agreement import kappa
from oneshot_lit.report.changes import mcnemar
from oneshot_lit.report.content import report_content
from oneshot_lit.report.runs import read_run
from oneshot_lit.report.scores import estimate


def content_of(*folders: Path, **options: Any) -> dict[str, Any]:
    runs = [read_run(folder.name, folder) for folder in folders]
    return report_content(runs, "t", folders[0].parent / "out", **options)


def by_key(content: dict[str, Any], key: str) -> dict[str, Any]:
    return next(row for row in content["scores"] if row["key"] == key)


def test_scores_of_the_story(story: list[Path]) -> None:
    content = content_of(*story)
    row = by_key(content, "harmful/asr_keyword")
    assert row["share"]
    assert row["runs"]["attacked"]["value"] == 0.95
    low, high = wilson(38, 40)
    assert (row["runs"]["attacked"]["low"], row["runs"]["attacked"]["high"]) == (low, high)
    assert by_key(content, "sql/rouge1")["runs"]["aligned"]["method"] == "t"
    graded = by_key(content, "harmful/harmfulness_score")
    assert not graded["share"]
    assert graded["runs"]["attacked"]["unscored"] == 1
    # All grades of the aligned run are 1: the mean has no interval, and is no rate.
    aligned = graded["runs"]["aligned"]
    assert (aligned["value"], aligned["low"], aligned["n"]) == (1.0, None, 39)


def test_older_runs_have_intervals_from_counts(tmp_path: Path) -> None:
    scores = {"harmful": {"asr_keyword": [1.0, 0.0, 1.0, None]}, "sql": {"rouge1": [0.2, 0.4]}}
    old = content_of(make_run(tmp_path / "a", scores, outcomes=False))
    new = content_of(make_run(tmp_path / "b", scores))
    key = "harmful/asr_keyword"
    assert by_key(old, key)["runs"]["a"] == by_key(new, key)["runs"]["b"]
    assert by_key(old, key)["runs"]["a"]["unscored"] == 1
    assert by_key(old, "sql/rouge1")["runs"]["a"]["low"] is None
    assert not old["categories"]
    assert "no outcomes of harmful, sql" in old["notes"][0]


def test_categories(story: list[Path]) -> None:
    content = content_of(*story)
    table = next(t for t in content["categories"] if t["key"] == "harmful/asr_keyword")
    assert [row["category"] for row in table["rows"]] == ["toxins", "weapons"]
    cells = [row["runs"]["patched"] for row in table["rows"]]
    assert [(cell["value"], cell["n"]) for cell in cells] == [(0.05, 20), (0.05, 20)]
    whole = by_key(content, "harmful/asr_keyword")["runs"]["patched"]
    assert sum(cell["n"] for cell in cells) == whole["n"]


def test_sets_of_one_run_show_a_dash(tmp_path: Path) -> None:
    scores = {"harmful": {"asr_keyword": [1.0, 0.0]}}
    a = make_run(tmp_path / "a", scores)
    b = make_run(tmp_path / "b", {**scores, "sql": {"rouge1": [0.5, 0.7]}})
    assert by_key(content_of(a, b), "sql/rouge1")["runs"]["a"] is None


def test_a_judge_that_could_tell_nothing_is_shown(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0]}})
    add_judge(a, "guard", "harmful", "flagged_rate", [None, None])
    content = content_of(a)
    cell = by_key(content, "harmful/flagged_rate")["runs"]["a"]
    assert (cell["value"], cell["n"], cell["unscored"]) == (None, 0, 2)
    row = next(row for row in content["judges"] if row["metric"] == "flagged_rate")
    assert row["unjudged"]["a"] == {"malformed": 2}
    assert any("2 of 2 in a" in line for line in content["findings"])


@pytest.mark.parametrize("metric", ["asr_graded", "flagged_rate_graded", "mine"])
def test_grades_are_no_share_whatever_their_name(tmp_path: Path, metric: str) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    b = make_run(tmp_path / "b", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    add_judge(a, "grader", "harmful", metric, [0.7, 0.4, 1.0])
    add_judge(b, "grader", "harmful", metric, [1.0, 0.0, 1.0])
    row = by_key(content_of(a, b), f"harmful/{metric}")
    assert not row["share"]
    for folder in (a, b):
        said = json.loads((folder / "metrics.json").read_text())["metrics"]
        assert row["runs"][folder.name]["value"] == pytest.approx(said[f"harmful/{metric}"])


def test_verdicts_of_yes_or_no_are_a_share_whatever_their_name(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    add_judge(a, "own", "harmful", "long_answer", [1.0, None, 0.0])
    row = by_key(content_of(a), "harmful/long_answer")
    assert row["share"]
    assert row["runs"]["a"]["method"] == "wilson"


def test_an_interval_holds_its_value_on_any_scale(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    add_judge(a, "own", "harmful", "harmfulness_score_own", [9.0, 8.0, 10.0])
    cell = by_key(content_of(a), "harmful/harmfulness_score_own")["runs"]["a"]
    assert cell["low"] < cell["value"] == 9.0 < cell["high"]


@pytest.mark.parametrize("metric", ["asr_keyword", "rouge1"])
def test_values_are_those_of_metrics_json(tmp_path: Path, metric: str) -> None:
    folder = make_run(tmp_path / "a", {"s": {metric: [1.0, 0.0, 1.0]}})
    run = read_run("a", folder)
    damaged = replace(run, content={**run.content, "metrics": {f"s/{metric}": 0.5}})
    assert estimate(run, f"s/{metric}", metric == "asr_keyword").value == pytest.approx(2 / 3)
    with pytest.raises(OneShotError, match=f"'s/{metric}' is 0.5 and its rows give 0.66"):
        estimate(damaged, f"s/{metric}", metric == "asr_keyword")


def test_lm_eval_uses_its_standard_error(tmp_path: Path) -> None:
    task = {"samples": 50, "stderr": {"acc": 0.05}, "scores": ["lm_eval/arc/acc"]}
    a = make_run(
        tmp_path / "a",
        {"harmful": {"asr_keyword": [1.0, 0.0]}},
        metrics={"harmful/asr_keyword": 0.5, "lm_eval/arc/acc": 0.6},
        evaluations={"lm_eval/arc": task},
    )
    cell = by_key(content_of(a), "lm_eval/arc/acc")["runs"]["a"]
    assert (cell["low"], cell["high"]) == pytest.approx((0.502, 0.698), abs=1e-3)
    assert (cell["n"], cell["method"]) == (50, "stderr")


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_sum(gained: int, lost: int) -> None:
    n, k = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail) if n else 1.0)


def test_changes_pair_prompts_in_any_order(tmp_path: Path) -> None:
    scores = [1.0, 1.0, 1.0, 0.0, 0.0]
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": scores}})
    b = make_run(tmp_path / "b", {"harmful": {"asr_keyword": scores}}, order=-1)
    (change,) = content_of(a, b)["changes"]
    assert (change["pairs"], change["kept"], change["gained"], change["lost"]) == (5, 3, 0, 0)


def test_findings_name_failures(story: list[Path]) -> None:
    said = "\n".join(content_of(*story)["findings"])
    assert "Of the 38 prompts in 'harmful' that attacked answers, patched still answers 2" in said
    assert "over_refusal on 'near_miss' rises from 0.0% to 10.0%" in said
    assert "chance may explain that, so no difference is shown" in said
    assert "rouge1 on 'sql' stays at 0.595" in said


def test_findings_without_outcomes_speak_of_intervals(tmp_path: Path) -> None:
    folders = [
        make_run(tmp_path / name, {"harmful": {"asr_keyword": scores}}, outcomes=False)
        for name, scores in (("a", [1.0, 0.0, 0.0, 0.0]), ("b", [1.0, 1.0, 0.0, 0.0]))
    ]
    said = "\n".join(content_of(*folders)["findings"])
    assert "the intervals overlap, so no difference is shown" in said


PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


@given(PAIRS)
def test_kappa_by_hand(pairs: list[tuple[bool, bool]]) -> None:
    n = len(pairs)
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    observed = sum(x == y for x, y in pairs) / n
    chance = (sum(a) * sum(b) + (n - sum(a)) * (n - sum(b))) / n**2
    if chance == 1:
        assert kappa(a, b) is None
    else:
        assert kappa(a, b) == pytest.approx((observed - chance) / (1 - chance), abs=1e-5)


def test_agreement_leaves_out_the_unjudged(story: list[Path]) -> None:
    rows = content_of(*story)["agreement"]
    assert [row["run"] for row in rows] == ["all runs", "aligned", "attacked", "patched"]
    assert [row["n"] for row in rows] == [117, 39, 39, 39]
    assert rows[0]["left"] == {"malformed": 3}
    assert rows[0]["kappa"] == pytest.approx(1.0)
    assert rows[1]["kappa"] is None
    assert rows[0]["agreement"]["value"] == 1.0


def test_graded_judges_are_cut_at_their_thresholds(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [0.0, 0.0, 1.0, 1.0]}})
    add_judge(a, "grader", "harmful", "harmfulness_score", [1.0, 3.0, 4.0, 5.0])
    add_judge(a, "strong", "harmful", "strongreject_score", [0.0, 0.375, 0.5, 0.4])
    rows = {tuple(j["judge"] for j in r["judges"]): r for r in content_of(a)["agreement"]}
    assert rows["test", "grader"]["agreement"]["value"] == 1.0
    assert rows["test", "strong"]["agreement"]["value"] == 0.75


def test_other_answers_are_not_joined(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [0.0, 1.0]}})
    for judge, metric in (("one", "flagged_rate"), ("two", "flagged_rate_two")):
        add_judge(a, judge, "harmful", metric, [0.0, 1.0])
    path = a / "judgments" / "two.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    write_rows(path, [rows[0], rows[1] | {"digest": "0" * 32}])
    found = {tuple(j["judge"] for j in r["judges"]): r for r in content_of(a)["agreement"]}
    assert found["one", "two"]["n"] == 1
    assert found["one", "two"]["left"] == {"another answer": 1}


def test_sampled_answers_of_the_test_are_compared_with_no_judge(tmp_path: Path) -> None:
    decoding = {"max_new_tokens": 24, "do_sample": True}
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [0.0, 1.0]}}, decoding=decoding)
    add_judge(a, "one", "harmful", "flagged_rate", [0.0, 1.0])
    content = content_of(a)
    assert not content["agreement"]
    assert any("sampled" in note for note in content["notes"])


def test_predictions_tell_which_answers_the_test_cannot_have_scored(tmp_path: Path) -> None:
    scores = {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}}
    a = make_run(tmp_path / "a", scores, phrase_list=PHRASE_LIST_VERSION)
    add_judge(a, "one", "harmful", "flagged_rate", [1.0, 1.0, 1.0])
    # The second holds no refusal phrase; the third is judged as another text.
    add_predictions(a, "harmful", "harmful", [answer_text(0), answer_text(1), "take vuke"])
    (row,) = content_of(a)["agreement"]
    assert row["n"] == 1
    assert row["left"] == {"another answer": 2}
