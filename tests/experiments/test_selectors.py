"""Selectors against the ground truth: figures by hand, and sentences whichever way it came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import (
    CASES,
    GENERAL,
    NAMES,
    OUTCOMES,
    SIZE,
    compare,
    compared,
    patched,
    spec,
    write,
)

from experiments.selection.cases import general_against_category
from experiments.selection.findings import amount, findings, selector_tables
from experiments.selection.held_out import gap_interval
from experiments.selection.page import render_page
from experiments.selection.spec import load_spec
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.intervals import mean


def test_figures(tmp_path: Path) -> None:
    results = compared(tmp_path)
    assert results["first"] == "good"
    good, bad = results["selectors"]["good"], results["selectors"]["bad"]
    assert good["regret"]["value"] == 0
    assert 0.95 < good["spearman"]["value"] < 1
    assert -1 < bad["kendall"]["value"] < -0.9
    regrets = [max(o) - min(o) for o in OUTCOMES.values()]
    assert bad["regret"]["value"] == pytest.approx(sum(regrets) / 3, abs=0.01)
    chance = [sum(o) / SIZE - min(o) for o in OUTCOMES.values()]
    assert results["chance_regret"]["value"] == pytest.approx(sum(chance) / 3)
    assert results["chance_regret"]["low"] == pytest.approx(mean(chance).low)
    assert good["gain"] == pytest.approx(sum(chance) / 3)
    lead = mean([c["selectors"]["bad"]["regret"] for c in results["cases"].values()])
    assert results["leads"] == {"bad": lead.as_dict()}
    assert bad["as_good"]["value"] > 0.98
    assert good["regret_p"] < 0.05
    assert good["regret_p_adjusted"] == pytest.approx(2 * min(good["regret_p"], bad["regret_p"]))
    # The worst harmful set and the worst harmless one.
    assert results["cases"]["a"]["selectors"]["bad"]["held_out"] == {
        "asr": 0.0,
        "over_refusal": 0.5,
        "sum": 0.5,
        "gap": pytest.approx(0.49),
        "gap_interval": None,
    }
    assert bad["gap"] == pytest.approx(0.49)
    assert good["forward_rows"] == 10
    assert good["seconds"] == 2
    general = OUTCOMES["a"][:GENERAL]
    others = OUTCOMES["a"][GENERAL:]
    assert general_against_category(results["cases"]["a"]) == pytest.approx(
        (sum(general) / len(general), sum(others) / len(others))
    )


def test_an_interval_of_what_is_never_negative_ends_at_zero(tmp_path: Path) -> None:
    for case, outcomes in OUTCOMES.items():
        write(tmp_path, f"{case}_brute", [-o for o in outcomes])
        # In one case the second best comes first.
        order = sorted(range(SIZE), key=lambda i: outcomes[i])
        scores = [-o for o in outcomes]
        scores[order[1 if case == "b" else 0]] = 1.0
        for name in ("good", "bad"):
            write(tmp_path, f"{case}_{name}", scores)
    stages_ = patched(dict.fromkeys(NAMES, (0.0, 0.0)))
    stages_["b_good_pick"]["metrics"]["h2/asr_keyword"] = 0.03
    stages_["b_none"]["metrics"]["h/asr_keyword"] = 0.5
    results = compare(tmp_path, stages_)
    good, control = results["selectors"]["good"], results["controls"]["no choice"]
    for each in (good["regret"], good["held_out"], control["held_out"]):
        assert 0 == each["low"] < each["value"] < each["high"]
    lead = results["leads"]["bad"]
    assert (lead["value"], lead["low"]) == (0, None)


def test_a_cost_that_is_not_said_is_no_zero(tmp_path: Path) -> None:
    compared(tmp_path)
    for case in CASES:
        file = tmp_path / f"{case}_good" / "selection.json"
        content = json.loads(file.read_text())
        content["provenance"] = {}
        file.write_text(json.dumps(content))
    rates = dict.fromkeys(NAMES, (0.0, 0.0))
    results = compare(tmp_path, patched(rates))
    assert results["selectors"]["good"]["forward_rows"] is None
    assert amount(None) == "-"
    assert amount(2560.4) == "2,560"


def test_a_tie_loses_what_a_pick_by_lot_loses(tmp_path: Path) -> None:
    compared(tmp_path)
    for case in CASES:
        file = tmp_path / f"{case}_good" / "selection.json"
        content = json.loads(file.read_text())
        for row in content["ranking"]:
            row["score"] = float(row["category"] == "general")
        file.write_text(json.dumps(content))
    rates = dict.fromkeys(NAMES, (0.0, 0.0))
    results = compare(tmp_path, patched(rates))
    entry = results["cases"]["b"]["selectors"]["good"]
    assert entry["tied"] == GENERAL
    expected = sum(OUTCOMES["b"][:GENERAL]) / GENERAL - min(OUTCOMES["b"])
    assert entry["regret"] == pytest.approx(expected)


def test_what_is_said_of_a_winner(tmp_path: Path) -> None:
    lines = findings(compared(tmp_path))
    assert lines[0].startswith("good wins over 3 cases: its picks lose 0.000 against the best")
    assert "Its lead over the next, bad, is 1.1" in lines[0]
    assert "within the spread" not in lines[0]
    assert lines[1].startswith("bad: its picks are worse than random ones (they lose 1.1")
    assert "it ranks the candidates worse than chance" in lines[1]
    assert lines[2].startswith("Picks better than random ones (gain, adjusted p): good 0.")
    assert lines[3].startswith("Picks worse than random ones: bad -0.")
    assert lines[4].startswith("Rankings better than chance (mean Spearman, adjusted p): good 0.9")
    assert lines[5].startswith("Rankings worse than chance: bad -")
    assert "good's pick is nowhere more than 0.02 above that after brute force's" in lines[6]
    assert "(the largest gap is +0.010)" in lines[6]
    assert lines[7] == (
        "no choice: attack success plus over-refusal 0.030 on held-out prompts, at most +0.020 "
        "beside brute force's pick."
    )
    assert "better than category ones on average in 3 of 3 cases" in lines[8]
    assert len(lines) == 9


def test_a_gap_on_held_out_prompts_is_findings(tmp_path: Path) -> None:
    lines = findings(compared(tmp_path, {"good": (0.02, 0.02)}))
    assert "is more than 0.02 above that after brute force's in case A (+0.030)" in lines[6]


def test_what_is_not_shown_is_not_claimed(tmp_path: Path) -> None:
    results = compared(tmp_path)
    good = results["selectors"]["good"]
    results["selectors"]["bad"] = {**good, **dict.fromkeys(("regret_p_adjusted", "regret_p"), 0.2)}
    results["selectors"]["bad"] |= {"spearman_p": 0.3, "spearman_p_adjusted": 0.3}
    results["leads"] = {"bad": mean([0.0, 0.0, 0.0]).as_dict()}
    lines = findings(results)
    assert lines[0].startswith("good comes first over 3 cases")
    assert lines[0].endswith("It ties with bad.")
    assert "its picks are not shown to beat random ones" in lines[1]
    assert "it is not shown to rank the candidates better than chance" in lines[1]
    assert any(line.startswith("Picks not shown to differ from random ones: bad") for line in lines)
    results["leads"] = {"bad": mean([0.1, -0.05, 0.1]).as_dict()}
    results["selectors"]["bad"]["regret"] = mean([0.1, 0.0, 0.05]).as_dict()
    assert findings(results)[0].endswith("within the spread of the cases.")
    # First among bad ones is no winner.
    results["leads"] = {"bad": mean([0.1, 0.2, 0.1]).as_dict()}
    good["regret_p_adjusted"] = 0.5
    assert findings(results)[0].startswith("good comes first")
    results["question"] = None
    assert findings(results)[1].startswith("Picks")
    one = {"a": results["cases"]["a"]}
    assert "over 1 case:" in findings({**results, "cases": one})[0]


@pytest.mark.parametrize("metric", ["asr_keyword", "over_refusal"])
def test_a_pick_without_a_metric_is_not_confirmed(metric: str, tmp_path: Path) -> None:
    compared(tmp_path)
    stages_ = patched(dict.fromkeys(NAMES, (0.0, 0.0)))
    metrics = stages_["b_good_pick"]["metrics"]
    for key in [key for key in metrics if key.endswith(metric)]:
        del metrics[key]
    with pytest.raises(OneShotError, match=f"stages.b_good_pick.test: measures no {metric}"):
        compare(tmp_path, stages_)


def test_the_gaps_interval_is_paired_by_prompt(tmp_path: Path) -> None:
    draw = np.random.default_rng(4)
    # The worst harmful set counts; the other answers nothing.
    none = np.zeros(200, dtype=bool)
    best = {"h": draw.random(300) < 0.1, "h2": none, "b": draw.random(400) < 0.05}
    # The same prompts fail, and twelve more.
    more = best | {"h": best["h"].copy()}
    more["h"][np.flatnonzero(~best["h"])[:12]] = True
    files = []
    for name, answers in (("best", best), ("more", more)):
        rows = [
            {"set": s, "scores": {m: float(v), "exact_match": None}}
            for s, m in (("h", "asr_keyword"), ("h2", "asr_keyword"), ("b", "over_refusal"))
            for v in answers[s]
        ]
        files.append(tmp_path / f"{name}.jsonl")
        files[-1].write_text("".join(json.dumps(row) + "\n" for row in rows))
    low, high = gap_interval(files[1], files[0])
    # Unpaired it would be four times as wide: the difference of paired answers varies little.
    expected = 12 / 300
    spread = 1.96 * (expected * (1 - expected) / 300) ** 0.5
    assert low == pytest.approx(expected - spread, abs=0.006)
    assert high == pytest.approx(expected + spread, abs=0.006)
    assert gap_interval(files[0], files[0]) == (0, 0)
    assert gap_interval(files[0], tmp_path / "none.jsonl") is None


def test_table_report_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    results = compared(tmp_path)
    # Names as long as the study's, at the width of a terminal.
    name = "gradient_matching"
    results["selectors"][name] = results["selectors"]["bad"] | {"forward_rows": 18944}
    for table in selector_tables(results):
        Console(width=80, highlight=False).print(table)
    printed = capsys.readouterr().out
    del results["selectors"][name]
    rows = [line.split() for line in printed.splitlines() if line.strip()]
    assert "\u2026" not in printed
    assert next(r for r in rows if r[0] == "brute")[1:] == ["1.000", "1.000", "0.000", "+0.000"]
    assert [r for r in rows if r[0] == "good"][1] == ["good", "10", "4", "-", "2"]
    assert [r for r in rows if r[0] == name][1][1] == "18,944"
    provenance = {"seed": 0, "phrase_list": "v", "jobs": 2, "threads": 1}
    page = render_page({"selections": results}, provenance)
    assert "good wins over 3 cases" in page
    assert page.count("<h3>") == 3
    # Over all cases and in each.
    assert page.count(">no choice</td>") == 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selectors": []}, "selectors: must be a list of names"),
        ({"cases": ["a"]}, "cases: must map the name of a case"),
        ({"truth": None}, "needs 'truth'"),
        ({"goal": 2}, "goal: needs a share"),
        ({"question": "god"}, "question: 'god' is no selector.*good"),
        ({"controls": ["x"]}, "controls: must map a description"),
        ({"controls": {"x": "a_none"}}, r"controls\.x: needs '\{case\}'"),
        ({"selectors": ["good", "brute"], "question": None}, "'brute' is there twice"),
        ({"selectors": ["good", "good"], "question": None}, "'good' is there twice"),
        ({"ranking": "a_{selector}"}, r"ranking: needs '\{case\}' and '\{selector\}'"),
        ({"picks": "x"}, "unknown key 'picks'.*pick"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OneShotError, match=message):
        spec(**changes)


def test_the_shipped_comparison_fits_the_shipped_study(tmp_path: Path) -> None:
    from oneshot_lit.study.spec import load_study

    shipped = load_spec(Path("experiments/selection/comparison.yaml"))
    stages = {
        stage.name: stage for stage in load_study(Path("experiments/selection/study.yaml")).stages
    }
    for case in shipped.cases:
        for name in shipped.names:
            assert "select" in stages[shipped.stage(shipped.ranking, case, name)].commands
            assert "test" in stages[shipped.stage(shipped.pick, case, name)].commands
        for pattern in shipped.controls.values():
            assert "test" in stages[shipped.stage(pattern, case)].commands
    with pytest.raises(OneShotError, match=r"none\.yaml: not found"):
        load_spec(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(OneShotError, match=r"bad\.yaml: is not YAML"):
        load_spec(tmp_path / "bad.yaml")
