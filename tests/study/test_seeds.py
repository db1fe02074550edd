"""A study of selections at several seeds: the cases of all of them together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from comparing import CASES, OUTCOMES, SIZE, finished, spec, write

from oneshot_lit import plots
from oneshot_lit.cli.main import main
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.intervals import mean
from oneshot_lit.methods.select.ranking import chance_tests
from oneshot_lit.study.report import render_report, save_selections
from oneshot_lit.study.seeds import Seed, compare_seeds, read_seeds
from oneshot_lit.study.selector_findings import said


def two_seeds(root: Path) -> tuple[Seed, list[Seed]]:
    own = Seed(root / "one", finished(root / "one", 1))
    finished(root / "two", 2)
    return own, read_seeds(spec(), 1, [str(root / "two")])


def test_the_cases_of_all_seeds_count(tmp_path: Path) -> None:
    own, beside = two_seeds(tmp_path)
    found = compare_seeds(spec(), own, beside)
    assert found["seeds"] == [1, 2]
    assert list(found["cases"]) == [f"seed {s}/{c}" for s in (1, 2) for c in CASES]
    assert found["cases"]["seed 2/b"]["title"] == "seed 2, case B"
    assert found["cases"]["seed 2/b"]["group"] == "case B"
    # The same figures twice: the mean is the same, the interval narrower.
    alone = own.results["selections"]["selectors"]["bad"]["regret"]
    both = found["selectors"]["bad"]["regret"]
    assert both["value"] == pytest.approx(alone["value"])
    assert both["low"] == pytest.approx(
        mean([c["selectors"]["bad"]["regret"] for c in found["cases"].values()]).low
    )
    assert both["low"] > alone["low"]
    # The pick of seed 2 has .03 and .01, brute force's none and .01.
    assert found["selectors"]["good"]["gap"] == pytest.approx(0.03)
    assert own.results["selections"]["selectors"]["good"]["gap"] == pytest.approx(0.02)
    lines = "\n".join(said(found))
    assert "good wins over 6 cases" in lines
    assert "seed 2, case A (+0.030)" in lines
    assert "seed 1, case A (" not in lines
    control = found["controls"]["no choice"]
    assert list(control["cases"]) == list(found["cases"])


def test_names_are_changed_in_all_seeds_alike(tmp_path: Path) -> None:
    own, beside = two_seeds(tmp_path)
    # Another order in one case of the second seed, so that the seeds differ.
    (tmp_path / "two" / "a_bad" / "selection.json").unlink()
    (tmp_path / "two" / "a_bad").rmdir()
    other = [float(i % 7) for i in range(SIZE)]
    write(tmp_path / "two", "a_bad", other)

    def bad(root: str, case: str) -> list[float]:
        content = json.loads((tmp_path / root / f"{case}_bad" / "selection.json").read_text())
        return [r["score"] for r in sorted(content["ranking"], key=lambda r: r["row"])]

    assert bad("two", "a") == other
    scores = [bad(root, case) for root in ("one", "two") for case in CASES]
    expected = chance_tests(scores, [*OUTCOMES.values(), *OUTCOMES.values()])
    row = compare_seeds(spec(), own, beside)["selectors"]["bad"]
    assert (row["regret_p"], row["spearman_p"]) == expected


def test_report_and_picture(tmp_path: Path) -> None:
    own, beside = two_seeds(tmp_path)
    finished(tmp_path / "zero", 0)
    beside += read_seeds(spec(), 1, [str(tmp_path / "zero")])
    results = {**own.results, "all_seeds": compare_seeds(spec(), own, beside)}
    page = render_report(results, "T", own.root)
    assert page.index("over seeds 0, 1 and 2</h2>") < page.index("wins at seed 1 alone</h2>")
    assert "good wins over 9 cases" in page
    assert "good wins over 3 cases" in page
    # Case by case it says what this seed came to.
    assert page.count("<h3>") == 3
    figure = plots.selector_comparison(results["all_seeds"])
    # One colour a case, whatever the seed; small regrets are seen beside large ones.
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(CASES.values())
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "symlog"]
    save_selections(results, own.root)
    assert (own.root / "selections" / "all_seeds.png").stat().st_size > 10_000


def test_a_general_instance_is_compared_on_average_over_many_cases(tmp_path: Path) -> None:
    own, beside = two_seeds(tmp_path)
    finished(tmp_path / "three", 3)
    beside += read_seeds(spec(), 1, [str(tmp_path / "three")])
    (line,) = [t for t in said(compare_seeds(spec(), own, beside)) if t.startswith("General")]
    assert "in 9 of 9 cases" in line
    general = sum(sum(o[:20]) / 20 for o in OUTCOMES.values()) / 3
    others = sum(sum(o[20:]) / 180 for o in OUTCOMES.values()) / 3
    assert f"{general:.3f} against {others:.3f} on average" in line


def changed(results: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**results, "selections": {**results["selections"], **changes}}


def test_mistakes(tmp_path: Path) -> None:
    file = tmp_path / "two" / "results.json"
    results = finished(tmp_path / "two", 2)
    with pytest.raises(OneShotError, match="two: has seed 2, whose cases would count twice"):
        read_seeds(spec(), 2, [str(file.parent)])
    with pytest.raises(OneShotError, match="has seed 2"):
        read_seeds(spec(), 1, [str(file.parent)] * 2)
    with pytest.raises(OneShotError, match=r"none.results\.json: no results"):
        read_seeds(spec(), 1, [str(tmp_path / "none")])
    with pytest.raises(OneShotError, match="compares no selectors"):
        read_seeds(None, 1, [str(file.parent)])
    assert read_seeds(None, 1, []) == []
    for content, message in (
        ("{", "is no study of selections"),
        ("[]", "is no study of selections"),
        (json.dumps({**results, "selections": None}), "is no study of selections"),
        (json.dumps(changed(results, cases={"a": {}})), r"other cases.*'b'"),
        (json.dumps(changed(results, selectors={"brute": {}})), r"other selectors.*'bad'"),
        (json.dumps(changed(results, controls={})), r"other controls.*'no choice'"),
    ):
        file.write_text(content)
        with pytest.raises(OneShotError, match=rf"results\.json: .*{message}"):
            read_seeds(spec(), 1, [str(file.parent)])


def test_studies_that_differ_are_not_compared(tmp_path: Path) -> None:
    own, _ = two_seeds(tmp_path)
    finished(tmp_path / "three", 3, dtype="g")
    with pytest.raises(OneShotError, match=r"three: 'dtype' differs"):
        compare_seeds(spec(), own, read_seeds(spec(), 1, [str(tmp_path / "three")]))
    finished(tmp_path / "four", 4)
    for name in CASES:
        for selector in ("brute", "good", "bad"):
            file = tmp_path / "four" / f"{name}_{selector}" / "selection.json"
            file.write_text(file.read_text().replace('"p', '"q'))
    beside = read_seeds(spec(), 1, [str(tmp_path / "four")])
    with pytest.raises(OneShotError, match="four: ranks other candidates"):
        compare_seeds(spec(), own, beside)
    (tmp_path / "four" / "c_good" / "selection.json").unlink()
    with pytest.raises(OneShotError, match=r"c_good.selection\.json: the ranking is missing"):
        compare_seeds(spec(), own, beside)


def test_the_command_says_so_before_it_runs_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["study", "--config", "configs/study/selection.yaml", "--root", str(tmp_path / "own")]
    assert main([*words, "--beside", str(tmp_path / "none")]) == 2
    assert "no results; run the study there first" in capsys.readouterr().err
    assert not (tmp_path / "own").exists()
