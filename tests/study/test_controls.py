"""A method is shown beside its control, with a paired test on the same prompts."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scipy.stats import binomtest

from oneshot_lit.errors import OneShotError
from oneshot_lit.report.runs import Run
from oneshot_lit.report.scores import all_scores, score_table
from oneshot_lit.report.tables import markdown_table
from oneshot_lit.study.controls import compare_controls, controls_section, sentences
from oneshot_lit.study.spec import load_study

PROMPTS = 40


def run(name: str, answered: set[int], right: int = PROMPTS) -> Run:
    """Return a run that answers some harmful prompts, refuses none, and has a skill."""
    rows = []
    for kind, metric, score in (
        ("harmful", "asr_keyword", lambda i: float(i in answered)),
        ("benign", "over_refusal", lambda i: 0.0),
        ("benign", "exact_match", lambda i: 1.0),
        ("sql", "exact_match", lambda i: float(i < right)),
        ("sql", "length_ratio", lambda i: 0.5),
    ):
        for i in range(PROMPTS):
            facts = {"by": "test", "metric": metric, "score": score(i), "set": kind, "place": i}
            rows.append(facts | {"category": None, "prompt": f"{kind}{i}", "reason": None})
    return Run(name, Path(name), {"evaluations": {}}, pd.DataFrame(rows))


def table(*runs: Run) -> pd.DataFrame:
    answers = all_scores(runs)
    return compare_controls({"control": "method"}, score_table(runs, answers), answers)


def test_both_values_and_the_exact_test() -> None:
    rows = table(run("method", set(range(4))), run("control", set(range(2, 20)), right=30))
    assert list(rows["metric"]) == ["asr_keyword", "over_refusal", "exact_match"]
    attack, refusal, skill = rows.to_dict("records")
    assert (attack["value"], attack["of_control"]) == (0.1, 0.45)
    # 2 prompts that only the method answers, 16 that only the control does.
    assert attack["p"] == pytest.approx(binomtest(2, 18).pvalue)
    assert attack["low"] < 0.1 < attack["high"] < attack["control_high"]
    assert refusal["p"] == 1.0
    assert (skill["value"], skill["of_control"]) == (1.0, 0.75)
    (said,) = sentences(rows)
    assert "10.0%" in said
    assert "45.0%" in said
    assert "safer than its control" in said
    assert said.endswith("It keeps more of 'sql/exact_match': 100.0%, beside 75.0%.")


def test_no_difference_is_said_to_be_none() -> None:
    (said,) = sentences(table(run("method", {1, 2}), run("control", {2, 3})))
    assert "no difference is shown (p = 1.000)" in said
    (said,) = sentences(table(run("method", set(range(20))), run("control", {2})))
    assert "less safe than its control (p < 0.001)" in said


def test_other_prompts_are_not_paired() -> None:
    method, control = run("method", {1}), run("control", {2})
    control.scores["prompt"] += "x"
    (said,) = sentences(table(method, control))
    assert "not tested" in said


def test_the_section_has_a_row_for_each_score() -> None:
    section = controls_section(table(run("method", {1}), run("control", set(range(30)))))
    shown = markdown_table(section.table)
    assert shown.count("\n") == 1 + 3
    assert "0.025 \\[0.004, 0.129\\]" in shown
    assert "&lt; 0.001" in shown
    assert section.lines


def test_a_study_without_controls_has_an_empty_table() -> None:
    runs = (run("method", {1}), run("other", {2}))
    answers = all_scores(runs)
    rows = compare_controls({}, score_table(runs, answers), answers)
    assert list(rows.columns)[:2] == ["method", "control"]
    assert rows.empty


def study(tmp_path: Path, control: str) -> Path:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text("{}")
    file = tmp_path / "study.yaml"
    file.write_text(
        f"test: {tmp_path}/a.yaml\n"
        "stages:\n"
        f"  method: {{model: {tmp_path}, fit: {tmp_path}/b.yaml}}\n"
        f"  control: {{model: {tmp_path}, control_of: {control}, fit: {tmp_path}/b.yaml}}\n"
    )
    return file


def test_the_study_names_the_method(tmp_path: Path) -> None:
    stages = load_study(study(tmp_path, "method")).stages
    assert [stage.control_of for stage in stages] == ["", "method"]


def test_a_method_that_is_no_stage(tmp_path: Path) -> None:
    with pytest.raises(OneShotError, match="is no stage with a test"):
        load_study(study(tmp_path, "methods"))
