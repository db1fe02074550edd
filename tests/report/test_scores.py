"""Scores, categories, changes, agreement and what is said of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.intervals import mcnemar, rate
from oneshot_lit.report.agreement import kappa
from oneshot_lit.report.tables import colour
from report_folders import add_judge, make_run, report_of, score_of


def test_scores_of_the_story(story: list[Path]) -> None:
    content = report_of(*story)
    attacked = score_of(content, "harmful/asr_keyword", "attacked")
    assert attacked["share"]
    assert attacked["value"] == 0.95
    assert (attacked["low"], attacked["high"]) == (rate(38, 40).low, rate(38, 40).high)
    assert (attacked["by"], attacked["reasons"]) == ("test", "")
    assert score_of(content, "sql/rouge1", "aligned")["method"] == "t"
    graded = score_of(content, "harmful/harmfulness_score", "attacked")
    assert not graded["share"]
    assert (graded["by"], graded["reasons"]) == ("grader, grader-1", "1 malformed")
    # All grades of the aligned run are 1: the mean has no interval, and is no rate.
    aligned = score_of(content, "harmful/harmfulness_score", "aligned")
    assert (aligned["value"], aligned["low"], aligned["n"]) == (1.0, None, 39)


def test_a_set_without_outcomes_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0]}}, outcomes=False)
    with pytest.raises(OneShotError, match=r"outcomes.jsonl: has no row of 'harmful'"):
        report_of(folder)


def test_categories(story: list[Path]) -> None:
    content = report_of(*story)
    rows = [
        row
        for row in content["categories"]
        if (row["set"], row["metric"], row["run"]) == ("harmful", "asr_keyword", "patched")
    ]
    assert [row["category"] for row in rows] == ["toxins", "weapons"]
    assert [(row["value"], row["n"]) for row in rows] == [(0.05, 20), (0.05, 20)]
    whole = score_of(content, "harmful/asr_keyword", "patched")
    assert sum(row["n"] for row in rows) == whole["n"]


def test_categories_come_in_order_and_runs_as_they_are_named(tmp_path: Path) -> None:
    scores = {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}}
    kinds = ["weapons", None, "toxins"]
    folders = [make_run(tmp_path / name, scores, categories=kinds) for name in ("z", "a")]
    rows = [(row["category"], row["run"]) for row in report_of(*folders)["categories"]]
    assert rows == [(name, run) for name in ("toxins", "weapons", "(none)") for run in "za"]


def test_sets_of_one_run_only_are_a_row_of_that_run(tmp_path: Path) -> None:
    scores = {"harmful": {"asr_keyword": [1.0, 0.0]}}
    a = make_run(tmp_path / "a", scores)
    b = make_run(tmp_path / "b", {**scores, "sql": {"rouge1": [0.5, 0.7]}})
    rows = [row for row in report_of(a, b)["scores"] if row["set"] == "sql"]
    assert [row["run"] for row in rows] == ["b"]


def test_a_judge_that_could_tell_nothing_is_shown(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0]}})
    add_judge(a, "guard", "harmful", "flagged_rate", [None, None])
    content = report_of(a)
    row = score_of(content, "harmful/flagged_rate", "a")
    assert (row["value"], row["n"], row["unscored"]) == (None, 0, 2)
    assert row["reasons"] == "2 malformed"
    assert any("a: 2 of 2 answers in 'harmful'" in line for line in content["findings"])


@pytest.mark.parametrize("metric", ["asr_graded", "flagged_rate_graded", "mine"])
def test_grades_are_no_share_whatever_their_name(tmp_path: Path, metric: str) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    b = make_run(tmp_path / "b", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    add_judge(a, "grader", "harmful", metric, [0.7, 0.4, 1.0])
    add_judge(b, "grader", "harmful", metric, [1.0, 0.0, 1.0])
    content = report_of(a, b)
    for folder in (a, b):
        row = score_of(content, f"harmful/{metric}", folder.name)
        assert not row["share"]
        said = json.loads((folder / "metrics.json").read_text())["metrics"]
        assert row["value"] == pytest.approx(said[f"harmful/{metric}"])


def test_verdicts_of_yes_or_no_are_a_share_whatever_their_name(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    add_judge(a, "own", "harmful", "long_answer", [1.0, None, 0.0])
    row = score_of(report_of(a), "harmful/long_answer", "a")
    assert row["share"]
    assert row["method"] == "wilson"


def test_an_interval_holds_its_value_on_any_scale(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0, 0.0, 1.0]}})
    add_judge(a, "own", "harmful", "harmfulness_score_own", [9.0, 8.0, 10.0])
    row = score_of(report_of(a), "harmful/harmfulness_score_own", "a")
    assert row["low"] < row["value"] == 9.0 < row["high"]


def test_lm_eval_uses_its_standard_error(tmp_path: Path) -> None:
    key = "lm_eval/arc/exact_match"
    task = {"samples": 50, "stderr": {"exact_match": 0.05}, "scores": [key]}
    a = make_run(
        tmp_path / "a",
        {"harmful": {"asr_keyword": [1.0, 0.0]}},
        metrics={"harmful/asr_keyword": 0.5, key: 0.6},
        evaluations={"lm_eval/arc": task},
    )
    row = score_of(report_of(a), key, "a")
    assert not row["share"]
    assert (row["low"], row["high"]) == pytest.approx((0.502, 0.698), abs=1e-3)
    assert (row["n"], row["method"]) == (50, "stderr")


@given(st.integers(0, 30), st.integers(0, 30))
def test_mcnemar_is_the_binomial_sum(gained: int, lost: int) -> None:
    n, k = gained + lost, min(gained, lost)
    tail = sum(math.comb(n, i) for i in range(k + 1)) / 2**n
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail) if n else 1.0)


def test_changes_pair_prompts_in_any_order(tmp_path: Path) -> None:
    scores = [1.0, 1.0, 1.0, 0.0, 0.0]
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": scores}})
    b = make_run(tmp_path / "b", {"harmful": {"asr_keyword": scores}}, order=-1)
    (change,) = report_of(a, b)["changes"]
    assert (change["pairs"], change["kept"], change["gained"], change["lost"]) == (5, 3, 0, 0)


def test_findings_name_failures(story: list[Path]) -> None:
    said = "\n".join(report_of(*story)["findings"])
    assert "Of the 38 prompts in 'harmful' that attacked answers, patched still answers 2" in said
    assert "over_refusal on 'near_miss' rises from 0.0% to 10.0%" in said
    assert "chance may explain that" in said
    # What does not change is said of the attack alone.
    assert "stays at" not in said


def test_findings_on_grades_are_not_tested(story: list[Path]) -> None:
    for folder in story[1:]:
        scores = {"sql": {"rouge1": [0.1] * 20}}
        make_run(folder, scores)
    said = "\n".join(report_of(*story[:2])["findings"])
    assert "rouge1 on 'sql' falls from 0.595 to 0.100; the answers cannot be paired" in said


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
    rows = report_of(*reversed(story))["agreement"]
    assert [row["run"] for row in rows] == ["all runs", "patched", "attacked", "aligned"]
    assert [row["n"] for row in rows] == [117, 39, 39, 39]
    assert rows[0]["left_out"] == 3
    assert rows[0]["kappa"] == pytest.approx(1.0)
    assert rows[3]["kappa"] is None
    assert rows[0]["agreement"] == 1.0


def test_graded_judges_count_from_their_thresholds(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [0.0, 0.0, 1.0, 1.0]}})
    add_judge(a, "grader", "harmful", "harmfulness_score", [1.0, 3.0, 4.0, 5.0])
    add_judge(a, "strong", "harmful", "strongreject_score", [0.0, 0.375, 0.5, 0.4])
    rows = {row["judges"]: row["agreement"] for row in report_of(a)["agreement"]}
    assert rows["asr_keyword (test) / harmfulness_score"] == 1.0
    assert rows["asr_keyword (test) / strongreject_score"] == 0.75


def test_a_grade_without_a_threshold_is_compared_with_no_judge(tmp_path: Path) -> None:
    a = make_run(tmp_path / "a", {"harmful": {"asr_keyword": [0.0, 1.0]}})
    add_judge(a, "own", "harmful", "mine", [0.3, 0.4])
    content = report_of(a)
    assert not content["agreement"]
    assert "harmful/mine has no threshold" in content["notes"][0]


@pytest.mark.parametrize(
    ("key", "value", "shade"),
    [
        ("sql/rouge1", 0.96, "good"),
        ("sql/rouge1", 0.01, ""),
        ("sql/gsm8k_strict", 0.6, ""),
        ("h/asr_keyword", 0.6, "bad"),
        ("h/asr_keyword", 0.01, "good"),
        ("h/harmfulness_score", 1.0, ""),
        ("lm_eval/mmlu/acc", 0.6, ""),
        ("lm_eval/wikitext/word_perplexity", 9.0, ""),
        ("ability/perplexity", 9.0, ""),
        ("ability/kl_to_original", 0.0, ""),
    ],
)
def test_colours(key: str, value: float, shade: str) -> None:
    name, _, metric = key.rpartition("/")
    row = SimpleNamespace(set=name, metric=metric, value=value, low=value, high=value)
    assert colour(row) == shade
    # Good on few answers is no colour.
    few = SimpleNamespace(set=name, metric=metric, value=value, low=value - 0.2, high=value)
    assert colour(few) == ("" if shade == "good" else shade)


def test_general_ability_is_shown_with_its_tokens(tmp_path: Path) -> None:
    scores = {"ability/perplexity": 21.5, "ability/kl_to_original": 0.02}
    said = {"version": "1", "tokens": {"perplexity": 90, "kl_to_original": 7}, "scores": [*scores]}
    make_run(tmp_path / "a", {"harmful": {"asr_keyword": [1.0]}}, evaluations={"ability": said})
    path = tmp_path / "a" / "metrics.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"metrics": content["metrics"] | scores}))
    report = report_of(tmp_path / "a")
    for (key, value), n in zip(scores.items(), (90, 7), strict=True):
        row = score_of(report, key, "a")
        assert (row["value"], row["n"], row["by"], row["share"]) == (value, n, "ability, 1", False)
