"""One study at several seeds: the cases of all of them together, and the command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from comparing import CASES, OUTCOMES, RAW, SIZE, finished, spec, write

from experiments.selection.__main__ import main
from experiments.selection.cases import compare_selectors
from experiments.selection.findings import findings
from experiments.selection.page import render_page
from experiments.selection.pictures import selector_comparison
from experiments.selection.ranking import chance_tests
from experiments.selection.studies import FinishedStudy, read_studies
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.intervals import mean


def seeds(root: Path, *numbers: int) -> list[FinishedStudy]:
    return read_studies([finished(root / str(number), number) for number in numbers])


@pytest.mark.slow
def test_the_cases_of_all_seeds_count(tmp_path: Path) -> None:
    studies = seeds(tmp_path, 1, 2)
    both, alone = compare_selectors(spec(), studies), compare_selectors(spec(), studies[:1])
    assert both["seeds"] == [1, 2]
    assert list(both["cases"]) == [f"seed {s}/{c}" for s in (1, 2) for c in CASES]
    assert both["cases"]["seed 2/b"]["title"] == "seed 2, case B"
    assert both["cases"]["seed 2/b"]["group"] == "case B"
    # The same figures twice: the mean is the same, the interval narrower.
    one, two = (each["selectors"]["bad"]["regret"] for each in (alone, both))
    assert two["value"] == pytest.approx(one["value"])
    assert two["low"] == pytest.approx(
        mean([c["selectors"]["bad"]["regret"] for c in both["cases"].values()]).low
    )
    assert two["low"] > one["low"]
    # The pick of seed 2 has .03 and .01, brute force's none and .01.
    assert both["selectors"]["good"]["gap"] == pytest.approx(0.03)
    assert alone["selectors"]["good"]["gap"] == pytest.approx(0.02)
    lines = "\n".join(findings(both))
    assert "good wins over 6 cases" in lines
    assert "seed 2, case A (+0.030)" in lines
    assert "seed 1, case A (" not in lines
    assert list(both["controls"]["no choice"]["cases"]) == list(both["cases"])


def test_names_are_changed_in_all_seeds_alike(tmp_path: Path) -> None:
    studies = seeds(tmp_path, 1, 2)
    # Another order in one case of the second seed, so that the seeds differ.
    other = [float(i % 7) for i in range(SIZE)]
    write(tmp_path / "2", "a_bad", other)

    def bad(root: str, case: str) -> list[float]:
        content = json.loads((tmp_path / root / f"{case}_bad" / "selection.json").read_text())
        return [r["score"] for r in sorted(content["ranking"], key=lambda r: r["row"])]

    assert bad("2", "a") == other
    scores = [bad(root, case) for root in "12" for case in CASES]
    expected = chance_tests(scores, [*OUTCOMES.values(), *OUTCOMES.values()])
    row = compare_selectors(spec(), studies)["selectors"]["bad"]
    assert (row["regret_p"], row["spearman_p"]) == expected


@pytest.mark.slow
def test_page_and_picture_of_all_seeds(tmp_path: Path) -> None:
    studies = seeds(tmp_path, 1, 2, 0)
    compared = {
        "selections": compare_selectors(spec(), studies[:1]),
        "all_seeds": compare_selectors(spec(), studies),
    }
    page = render_page(compared, studies[0].results["provenance"])
    assert page.index("over seeds 0, 1 and 2</h2>") < page.index("wins at seed 1 alone</h2>")
    assert "good wins over 9 cases" in page
    assert "good wins over 3 cases" in page
    # Case by case it says what this seed came to.
    assert page.count("<h3>") == 3
    figure = selector_comparison(compared["all_seeds"])
    # One colour a case, whatever the seed; small regrets are seen beside large ones.
    assert [t.get_text() for t in figure.legends[0].get_texts()] == list(CASES.values())
    assert [axes.get_xscale() for axes in figure.axes] == ["linear", "symlog"]


@pytest.mark.slow
def test_a_general_instance_is_compared_on_average_over_many_cases(tmp_path: Path) -> None:
    lines = findings(compare_selectors(spec(), seeds(tmp_path, 1, 2, 3)))
    (line,) = [line for line in lines if line.startswith("General")]
    assert "in 9 of 9 cases" in line
    general = sum(sum(o[:20]) / 20 for o in OUTCOMES.values()) / 3
    others = sum(sum(o[20:]) / 180 for o in OUTCOMES.values()) / 3
    assert f"{general:.3f} against {others:.3f} on average" in line


def test_mistakes(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "one", 1), finished(tmp_path / "two", 2)
    with pytest.raises(OneShotError, match="two: has seed 2, whose cases would count twice"):
        read_studies([one, two, two])
    with pytest.raises(OneShotError, match=r"none.results\.json: no results"):
        read_studies([one, tmp_path / "none"])
    with pytest.raises(OneShotError, match=r"three: 'dtype' differs"):
        read_studies([one, finished(tmp_path / "three", 3, dtype="g")])
    for content in ("{", "[]", '{"provenance": {"seed": 2}}'):
        (two / "results.json").write_text(content)
        with pytest.raises(OneShotError, match=r"results\.json: holds no results of a study"):
            read_studies([one, two])


def test_rankings_must_be_there_and_of_one_pool(tmp_path: Path) -> None:
    studies = seeds(tmp_path, 1, 4)
    file = tmp_path / "4" / "c_good" / "selection.json"
    text = file.read_text()
    file.write_text(text.replace('"p', '"q'))
    with pytest.raises(OneShotError, match=r"c_good.selection\.json: ranks other candidates"):
        compare_selectors(spec(), studies)
    file.unlink()
    with pytest.raises(OneShotError, match=r"c_good.selection\.json: the ranking is missing"):
        compare_selectors(spec(), studies)
    file.write_text(text)
    stages = {n: s for n, s in studies[1].results["stages"].items() if n != "b_none"}
    lacking = FinishedStudy(studies[1].root, {**studies[1].results, "stages": stages})
    with pytest.raises(OneShotError, match=r"results\.json: has no stage 'b_none'"):
        compare_selectors(spec(), [studies[0], lacking])


@pytest.mark.slow
def test_the_command_prints_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    one, two = finished(tmp_path / "one", 1), finished(tmp_path / "two", 2)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(RAW))
    words = ["--comparison", str(tmp_path / "c.yaml"), "--study", str(one)]
    assert main([*words, "--beside", str(two)]) == 0
    assert "good wins over 6 cases" in capsys.readouterr().out
    folder = one / "selections"
    compared = json.loads((folder / "comparison.json").read_text())
    assert compared["all_seeds"]["seeds"] == [1, 2]
    assert list(compared["selections"]["cases"]) == list(CASES)
    for name in ("selectors", "all_seeds", "outcomes"):
        assert (folder / f"{name}.png").stat().st_size > 10_000
    assert "over seeds 1 and 2</h2>" in (folder / "report.html").read_text()
    assert main([*words, "--beside", str(tmp_path / "none")]) == 2
    assert "no results; run the study there first" in capsys.readouterr().err


def test_the_package_does_not_import_experiments() -> None:
    for file in Path("src").rglob("*.py"):
        assert "import experiments" not in (text := file.read_text()), file
        assert "from experiments" not in text, file
