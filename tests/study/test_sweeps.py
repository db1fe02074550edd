"""Sweeps: which stages a curve has, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml

from oneshot_lit import plots
from oneshot_lit.errors import OneShotError
from oneshot_lit.study.spec import load_study
from oneshot_lit.study.sweeps import parse_sweeps, sweep_scores

NAMES = ["attacked", "ten_steps", "k1", "k20", "k5", "rate1e-05", "rate2.5e-4", "other_k3"]


def sweeps(**changes: Any) -> Any:
    return parse_sweeps([{"title": "t", "x": "k", "lines": {"a": "k{}"}, **changes}], NAMES, "s")


def test_members_are_in_the_order_of_their_numbers() -> None:
    (sweep,) = sweeps(lines={"a": "k{}", "b": "rate{}"}, levels=["ten_steps"])
    assert sweep.lines["a"] == ((1.0, "k1"), (5.0, "k5"), (20.0, "k20"))
    assert sweep.lines["b"] == ((1e-5, "rate1e-05"), (2.5e-4, "rate2.5e-4"))
    assert sweep.levels == ("ten_steps",)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lines": {"a": "q{}"}}, r"s\[0\].lines.a: no stage matches 'q{}'"),
        ({"lines": {"a": "k1"}}, "no stage matches 'k1'"),
        ({"lines": ["k{}"]}, r"s\[0\].lines: must map"),
        ({"levels": ["ten_step"]}, "'ten_step' is no stage .did you mean 'ten_steps'"),
        ({"line": {}}, "unknown key 'line' .did you mean 'lines'"),
    ],
)
def test_mistakes(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(OneShotError, match=said):
        sweeps(**changes)


def test_a_study_file_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    content = yaml.safe_load(Path("configs/study/demo.yaml").read_text())
    path.write_text(yaml.safe_dump(content | {"sweeps": [{"lines": {"a": "k{}"}}]}))
    with pytest.raises(OneShotError, match=r"study.yaml: sweeps\[0\].lines.a: no stage"):
        load_study(path)


ORIGINS = dict.fromkeys(("ten_steps", "k1", "k5"), "attacked")


def scores(**more: dict[str, float]) -> pd.DataFrame:
    stages = {
        "attacked": {"h/asr_keyword": 1.0, "b/over_refusal": 0.0, "t/exact_match": 0.9},
        "ten_steps": {"h/asr_keyword": 0.0, "t/exact_match": 0.9},
        "k1": {"h/asr_keyword": 0.5, "b/over_refusal": 0.1, "t/exact_match": 0.8},
        "k5": {"h/asr_keyword": 0.0, "b/over_refusal": 0.2, "t/exact_match": 1.0},
        "k20": {"h/asr_keyword": 0.0, "b/over_refusal": 0.3, "n/over_refusal": 0.4},
    }
    rows = []
    for run, values in stages.items():
        for key, value in (values | more.get(run, {})).items():
            name, _, metric = key.rpartition("/")
            rows.append({"set": name, "metric": metric, "run": run, "value": value})
    return pd.DataFrame(rows)


def test_scores() -> None:
    (sweep,) = sweeps(levels=["ten_steps"])
    attack, refusal, loss = sweep_scores(sweep, scores(), ORIGINS).values()
    assert attack["lines"]["a"] == [(1.0, 0.5), (5.0, 0.0), (20.0, 0.0)]
    assert attack["levels"] == {"ten_steps": 0.0}
    assert refusal["lines"]["a"] == [(1.0, 0.1), (5.0, 0.2), (20.0, 0.4)]
    assert refusal["levels"] == {}
    # The last one did not start from a stage: there is nothing to compare it with.
    assert [n for n, _ in loss["lines"]["a"]] == [1.0, 5.0]
    assert loss["lines"]["a"][0][1] == pytest.approx(0.1)
    assert loss["lines"]["a"][1][1] == pytest.approx(-0.1)


def test_the_loss_of_any_skill_counts() -> None:
    (sweep,) = sweeps()
    more = scores(attacked={"t/rouge1": 0.75}, k1={"t/rouge1": 0.25, "t/over_refusal": 0.0})
    drawn = sweep_scores(sweep, more, ORIGINS)
    assert drawn["largest loss of a skill"]["lines"]["a"][0] == (1.0, 0.5)


def test_picture_has_a_panel_for_each_measure() -> None:
    (sweep,) = sweeps(levels=["ten_steps"])
    figure = plots.sweep_panels(sweep_scores(sweep, scores(), ORIGINS), "k")
    assert len(figure.axes) == 3
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "5", "20"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.5, 0.0, 0.0]
    plt.close(figure)
