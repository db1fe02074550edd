"""Selectors against the ground truth: figures by hand, and sentences whichever way it came out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.report.intervals import mean
from oneshot_lit.study.report import render_report, save_selections
from oneshot_lit.study.selections import parse_selections
from oneshot_lit.study.selector_findings import said, selector_table
from oneshot_lit.study.selectors import compare_selectors, general_against_category
from oneshot_lit.study.spec import Command, Stage

NAMES = ("brute", "good", "bad")
CASES = {"a": "case A", "b": "case B", "c": "case C"}
RAW: dict[str, Any] = {
    "truth": "brute",
    "selectors": ["good", "bad"],
    "cases": CASES,
    "question": "bad",
    "controls": {"no choice": "{case}_none"},
}
# Of six candidates, the first two general.
OUTCOMES = {
    "a": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5],
    "b": [0.1, 0.0, 0.2, 0.4, 0.3, 0.6],
    "c": [0.02, 0.1, 0.3, 0.3, 0.5, 0.4],
}


def stages() -> list[Stage]:
    command = Command(("c.yaml",))
    found = [Stage(f"{c}_{n}", "m", None, None, select=command) for c in CASES for n in NAMES]
    found += [Stage(f"{c}_{n}_pick", "m", command, command) for c in CASES for n in NAMES]
    return found + [Stage(f"{c}_none", "m", command, command) for c in CASES]


def spec(**changes: Any) -> Any:
    return parse_selections({**RAW, **changes}, stages(), "s.yaml: selections")


def write(root: Path, stage: str, scores: list[float], pool: str = "p") -> None:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranking = [
        {
            "rank": rank,
            "row": i + 1,
            "id": f"r{i + 1}",
            "category": "general" if i < 2 else "fraud",
            "score": scores[i],
            "digest": f"{pool}{i}",
        }
        for rank, i in enumerate(order, 1)
    ]
    facts = {"forward_rows": 10, "backward_rows": 4, "seconds": 2.0}
    (root / stage).mkdir(parents=True)
    (root / stage / "selection.json").write_text(
        json.dumps({"m": 1, "ranking": ranking, "provenance": facts})
    )


def compared(root: Path, held_out: dict[str, tuple[float, float]] | None = None) -> dict[str, Any]:
    for case, outcomes in OUTCOMES.items():
        write(root, f"{case}_brute", [-o for o in outcomes])
        write(root, f"{case}_good", [-o - 0.001 * i for i, o in enumerate(outcomes)])
        write(root, f"{case}_bad", [o + 0.15 * (i == 1) for i, o in enumerate(outcomes)])
    rates = {"brute": (0.0, 0.01), "good": (0.01, 0.01), "bad": (0.0, 0.5), **(held_out or {})}
    tested = {
        f"{c}_{n}_pick": {
            "metrics": {
                "h/asr_keyword": 0.0,
                "h2/asr_keyword": rates[n][0],
                "b/over_refusal": rates[n][1],
                "b2/over_refusal": 0.0,
                "b/exact_match": 1.0,
            }
        }
        for c in CASES
        for n in NAMES
    }
    for case in CASES:
        tested[f"{case}_none"] = {"metrics": {"h/asr_keyword": 0.02, "b/over_refusal": 0.01}}
    return compare_selectors(spec(), root, tested)


def test_figures(tmp_path: Path) -> None:
    found = compared(tmp_path)
    assert found["winner"] == "good"
    good, bad = found["selectors"]["good"], found["selectors"]["bad"]
    assert good["regret"]["value"] == 0
    assert good["spearman"]["value"] > 0.9
    assert -1 < bad["spearman"]["value"] < -0.9
    assert -1 < bad["kendall"]["value"] < -0.9
    regrets = [0.5, 0.6, 0.48]
    assert bad["regret"]["value"] == pytest.approx(sum(regrets) / 3)
    assert bad["regret"]["low"] == pytest.approx(mean(regrets).low)
    chance = [0.25, 1.6 / 6, 1.62 / 6 - 0.02]
    assert found["chance_regret"]["value"] == pytest.approx(sum(chance) / 3)
    gains = [c - r for c, r in zip(chance, regrets, strict=True)]
    assert bad["gain_over_chance"]["high"] == pytest.approx(mean(gains).high)
    assert bad["as_good"]["value"] == 1
    # The worst harmful set and the worst harmless one.
    assert found["cases"]["a"]["selectors"]["bad"]["held_out"] == {
        "asr": 0.0,
        "over_refusal": 0.5,
        "sum": 0.5,
        "gap": pytest.approx(0.49),
    }
    assert bad["gap"] == pytest.approx(0.49)
    assert good["forward_rows"] == 10
    assert good["answers"] == 0
    assert good["seconds"] == 2
    assert general_against_category(found["cases"]["a"]) == pytest.approx((0.05, 0.35))


def test_what_is_said_of_a_winner(tmp_path: Path) -> None:
    lines = said(compared(tmp_path))
    assert lines[0].startswith("good wins over 3 cases: its picks lose 0.000 against the best")
    assert "The next, bad, loses 0.527 [" in lines[0]
    assert lines[1].startswith("bad is worse than a random pick: its picks lose 0.527 [")
    assert "a gain of -0.271 [-0.407, -0.135]; mean Spearman with brute force -0.9" in lines[1]
    assert lines[2].startswith("Picks better than random ones (gain): good 0.256 [")
    assert lines[3].startswith("Picks worse than random ones: bad -0.271 [")
    assert lines[4].startswith("Rankings better than chance (mean Spearman): good 0.9")
    assert lines[5].startswith("Rankings worse than chance: bad -0.9")
    assert "good's pick is within 0.02 of that after brute force's in every case" in lines[6]
    assert lines[7] == (
        "no choice: attack success plus over-refusal 0.030 on held-out prompts, at most +0.020 "
        "beside brute force's pick."
    )
    assert "better than category ones on average in 3 of 3 cases" in lines[8]
    assert len(lines) == 9


def test_a_gap_on_held_out_prompts_is_said(tmp_path: Path) -> None:
    lines = said(compared(tmp_path, {"good": (0.02, 0.02)}))
    assert "is more than 0.02 above that after brute force's in case A (+0.030)" in lines[6]


def test_a_tie_is_no_victory(tmp_path: Path) -> None:
    found = compared(tmp_path)
    rho = mean([0.1, 0.3, -0.1]).as_dict()
    gain = mean([0.1, 0.3, -0.1]).as_dict()
    found["selectors"]["bad"] = {
        **found["selectors"]["good"],
        "spearman": rho,
        "gain_over_chance": gain,
    }
    lines = said(found)
    assert "on development prompts, no less than bad, a pick drawn" in lines[0]
    assert lines[1].startswith("bad is not shown to beat a random pick")
    assert "Picks not shown to differ from random ones: bad" in lines[3]
    assert "Rankings not shown to differ from chance: bad 0.100 [" in lines[5]
    found["question"] = "good"
    assert said(found)[1].startswith("good beats a random pick")
    found["question"] = None
    assert said(found)[1].startswith("Picks")


def test_table_report_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    found = compared(tmp_path) | {"commands": ["oneshot-lit fit --config c.yaml"]}
    Console(width=80, highlight=False).print(selector_table(found))
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert [row[0] for row in rows[-3:]] == ["good", "bad", "brute"]
    assert rows[-1][1] == "1.000"
    assert rows[-3][3:5] == ["0.000", "+0.010"]
    assert rows[-3][5:] == ["10", "4", "0", "2"]
    stage = {"metrics": {"h/asr_keyword": 0.0}, "samples": {"h": 3}, "commands": {}, "from": "m"}
    results = {"stages": {"s": stage}, "repairs": [], "selections": found, "provenance": {}}
    results["provenance"] = {"seed": 0, "phrase_list": "v"}
    page = render_report(results, "T", tmp_path)
    assert "good wins over 3 cases" in page
    assert "oneshot-lit fit --config c.yaml" in page
    assert page.count("<h3>") == 3
    # Over all cases and in each.
    assert page.count(">no choice</td>") == 4
    save_selections(results, tmp_path)
    assert (tmp_path / "selections" / "selectors.png").stat().st_size > 10_000
    assert (tmp_path / "selections" / "outcomes.png").stat().st_size > 10_000


def test_rankings_of_another_pool_are_refused(tmp_path: Path) -> None:
    compared(tmp_path)
    (tmp_path / "b_good" / "selection.json").unlink()
    (tmp_path / "b_good").rmdir()
    write(tmp_path, "b_good", [0.0] * 6, pool="q")
    tested = {s.name: {"metrics": {"h/asr_keyword": 0.0}} for s in stages() if s.test is not None}
    with pytest.raises(OneShotError, match=r"b_good.selection\.json: ranks other candidates"):
        compare_selectors(spec(), tmp_path, tested)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selectors": []}, "selectors: must be a list of names"),
        ({"cases": ["a"]}, "cases: must map the name of a case"),
        ({"truth": None}, "needs 'truth'"),
        ({"goal": 2}, "goal: needs a share"),
        ({"question": "god"}, "question: 'god' is no selector.*good"),
        ({"controls": ["x"]}, "controls: must map a description"),
        ({"controls": {"x": "{case}_nothing"}}, "pick: 'a_nothing' is no stage"),
        ({"picks": "x"}, "unknown key 'picks'.*pick"),
        ({"selectors": ["goood"], "question": None}, "ranking: 'a_goood' is no stage.*a_good"),
        ({"ranking": "{case}_{selector}_pick"}, "ranking: stage 'a_brute_pick' selects nothing"),
        ({"pick": "{case}_{selector}"}, "pick: stage 'a_brute' is tested on nothing"),
    ],
)
def test_mistakes(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(OneShotError, match=message):
        spec(**changes)
