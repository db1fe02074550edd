"""Sweeps: which stages a curve has, and what is drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshot_lit import plots
from oneshot_lit.cli.study import score_table
from oneshot_lit.errors import OneShotError
from oneshot_lit.study.report import render_report, save_sweeps
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
        ({"levels": "attacked"}, "levels: must be a list"),
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


def entry(start: str, **metrics: float) -> dict[str, Any]:
    found = {key.replace("__", "/"): value for key, value in metrics.items()}
    return {"from": start, "metrics": found, "samples": {"h": 9}, "commands": {}}


def stages() -> dict[str, Any]:
    before = entry("models/x", h__asr_keyword=1.0, b__over_refusal=0.0, t__exact_match=0.9)
    return {
        "attacked": before,
        "ten_steps": entry("attacked", h__asr_keyword=0.0, t__exact_match=0.9),
        "k1": entry("attacked", h__asr_keyword=0.5, b__over_refusal=0.1, t__exact_match=0.8),
        "k5": entry("attacked", h__asr_keyword=0.0, b__over_refusal=0.2, t__exact_match=1.0),
        "k20": entry("models/x", h__asr_keyword=0.0, b__over_refusal=0.3, n__over_refusal=0.4),
    }


def test_scores() -> None:
    (sweep,) = sweeps(levels=["ten_steps"])
    scores = sweep_scores(sweep, stages())
    attack, refusal, loss = scores.values()
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
    found = stages()
    found["attacked"]["metrics"]["t/rouge1"] = 0.75
    found["k1"]["metrics"] |= {"t/rouge1": 0.25, "t/over_refusal": 0.0}
    (_, lost), _ = sweep_scores(sweep, found)["largest loss of a skill"]["lines"]["a"]
    assert lost == 0.5


def test_picture_has_a_panel_for_each_measure() -> None:
    (sweep,) = sweeps(levels=["ten_steps"])
    figure = plots.sweep_panels(sweep_scores(sweep, stages()), "k")
    assert len(figure.axes) == 3
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["1", "5", "20"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [0.5, 0.0, 0.0]
    plots.close(figure)


def test_report_shows_the_sweep(tmp_path: Path) -> None:
    provenance = {"seed": 0, "phrase_list": "v1"}
    results = {"stages": stages(), "repairs": [], "provenance": provenance}
    without = render_report(results, "a title", tmp_path)
    html = render_report(results, "a title", tmp_path, sweeps(title="Recovery <k>"))
    assert html.count("data:image/png") == without.count("data:image/png") + 1
    assert "Recovery &lt;k&gt;" in html


def test_pictures_are_files_too(tmp_path: Path) -> None:
    save_sweeps({"stages": stages()}, sweeps(title="Recovery: k, by hand"), tmp_path)
    assert (tmp_path / "sweeps" / "recovery_k_by_hand.png").stat().st_size > 5000


def test_many_stages_are_rows_of_the_table() -> None:
    few = score_table({name: entry("x", h__asr_keyword=1.0) for name in "abc"})
    many = score_table({name: entry("x", h__asr_keyword=1.0) for name in "abcdefgh"})
    assert (few.row_count, len(few.columns)) == (1, 4)
    assert (many.row_count, len(many.columns)) == (8, 2)
