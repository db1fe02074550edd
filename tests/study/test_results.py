"""What a study reports of stages that have run."""

from __future__ import annotations

from pathlib import Path

from oneshot_lit.report.page import write_report
from oneshot_lit.report.scores import worst
from oneshot_lit.report.tables import shown_scores
from oneshot_lit.study.results import compare_stages
from oneshot_lit.study.spec import Command, Stage, Study
from oneshot_lit.study.sweeps import Sweep
from report_folders import make_run

CONFIG = Command(("configs/evaluate/microworld.yaml",))
TEST = {"test": CONFIG}
FIT = {"fit": CONFIG, "test": CONFIG}


def study(root: Path, *names: str) -> Study:
    stages = [Stage("aligned", "checkpoints/small", TEST), Stage("hit", "checkpoints/small", FIT)]
    stages += [Stage(name, "hit", FIT) for name in names]
    sweep = Sweep("Recovery <k>", "k", {"a": tuple((float(n[1:]), n) for n in names)}, ("hit",))
    return Study("s", "A [t]", root, 0, tuple(stages), root / "s.yaml", (sweep,))


def run_stages(given: Study) -> None:
    for number, stage in enumerate(given.stages):
        answered = [float(i < number) for i in range(40)]
        sets = {"harmful": {"asr_keyword": answered}, "benign": {"over_refusal": [0.0] * 20}}
        sets["sql"] = {"exact_match": [1.0] * 9}
        make_run(given.folder(stage), sets)


def test_results_and_report(tmp_path: Path) -> None:
    given = study(tmp_path, "k1", "k5")
    run_stages(given)
    report, results = compare_stages(given, {"hit": {"fit": 1.234}})
    assert list(results["stages"]) == ["aligned", "hit", "k1", "k5"]
    assert results["stages"]["hit"]["metrics"]["harmful/asr_keyword"] == 1 / 40
    assert results["stages"]["hit"]["seconds"] == {"fit": 1.23}
    assert results["stages"]["k1"]["from"] == "hit"
    assert results["provenance"]["seed"] == 0
    # A stage is compared with the one that its model comes from.
    pairs = report.changes[["from", "to"]].drop_duplicates().values.tolist()
    assert pairs == [["aligned", "hit"], ["hit", "k1"], ["hit", "k5"]]
    write_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "Recovery &lt;k&gt;" in page
    assert page.count("data:image/png;base64,") == 3
    assert "SECRET" not in page


def test_many_stages_are_rows(tmp_path: Path) -> None:
    given = study(tmp_path, *(f"k{n}" for n in range(9)))
    run_stages(given)
    report, _ = compare_stages(given, {})
    table = shown_scores(report, lambda row: f"{row.value:.3f}")
    assert list(table.columns) == ["harmful/asr_keyword", "benign/over_refusal", "sql/exact_match"]
    assert table.loc["k0"].tolist() == ["0.050", "0.000", "1.000"]
    write_report(report, tmp_path)


def test_other_settings_are_noted(tmp_path: Path) -> None:
    given = study(tmp_path)
    run_stages(given)
    make_run(tmp_path / "hit", {"harmful": {"asr_keyword": [1.0]}}, dtype="bfloat16")
    report, results = compare_stages(given, {})
    assert any("dtype differs" in note for note in report.notes)
    assert "dtype" not in results["provenance"]


def test_an_attack_behind_a_trigger_is_not_averaged_away(tmp_path: Path) -> None:
    given = study(tmp_path)
    sets = {"h": {"asr_keyword": [0.0, 0.0]}, "h_triggered": {"asr_keyword": [1.0, 1.0]}}
    for stage in given.stages:
        make_run(given.folder(stage), sets)
    report, _ = compare_stages(given, {})
    assert worst(report.scores, "hit", "asr_keyword")["set"] == "h_triggered"
    assert "hit, on its worst sets: 100.0%" in report.findings[1]
