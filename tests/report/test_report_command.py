"""The command ``oneshot-lit report``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from oneshot_lit.errors import OneShotError
from report_folders import make_run

FILES = ["report.html", "report.json", "report.md", "table.csv", "table.tex"]


@pytest.mark.slow
def test_report(command, story: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report"
    names = [
        f"{name}={folder}" for name, folder in zip("before [b] after".split(), story, strict=True)
    ]
    done = command("report", "--runs", *names, "--out", out, "--title", "[t] story")
    assert done.code == 0, done.err
    assert sorted(f.name for f in out.glob("*.*")) == FILES
    assert (out / "pictures" / "0_scores_with_95_intervals.png").stat().st_size > 5000
    for shown in ("[t] story", "[b]", "0.950", "still answers 2", str(out / "report.html")):
        assert shown in done.out.replace("\n", " ") or shown in done.out
    markdown = (out / "report.md").read_text()
    for link in (
        "0_scores_with_95_intervals.png",
        "1_safety_and_utility.png",
        "2_realignment_of_after.png",
    ):
        assert f"pictures/{link}" in markdown
        assert (out / "pictures" / link).is_file()
    before = {f.name: f.read_bytes() for f in out.glob("*.*")}
    command("report", "--runs", *names, "--out", out, "--title", "[t] story")
    assert before == {f.name: f.read_bytes() for f in out.glob("*.*")}


def test_bare_folders_are_named_by_themselves(command, story: list[Path], tmp_path: Path) -> None:
    done = command("report", "--runs", *story, "--out", tmp_path / "report")
    assert done.code == 0, done.err
    assert "attacked to patched" in done.out.replace("\n", " ")


def test_runs_named_like_columns(command, story: list[Path], tmp_path: Path) -> None:
    for first, second in (("category", "set"), ("metric", "by")):
        names = [f"{first}={story[0]}", f"{second}={story[1]}"]
        done = command("report", "--runs", *names, "--out", tmp_path / first)
        assert done.code == 0, done.err
        assert f"| {first} " in (tmp_path / first / "report.md").read_text()


def test_runs_without_any_score(command, tmp_path: Path) -> None:
    folders = [make_run(tmp_path / name, {}) for name in "ab"]
    done = command("report", "--runs", *folders, "--out", tmp_path / "report")
    assert done.code == 0, done.err


def test_outputs_only_with_the_flag(command, story: list[Path], tmp_path: Path) -> None:
    command("report", "--runs", *story, "--out", tmp_path / "r", "--show_outputs")
    assert "SECRET-OUTPUT" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--runs", "{0}", "{0}"], "two runs are named 'aligned'"),
        (["--runs", "a={0}/nowhere"], "or check --runs"),
        (["--runs", "a={0}/judgments"], "metrics.json: missing; run oneshot-lit test"),
        (["--runs", "={0}"], "give NAME=FOLDER"),
        (["--runs", "{0}", "--examples", "-1"], "--examples -1: must be 0 or more"),
        (["--runs", "{0}", "--out", "{0}"], "is the folder of a run"),
        (["--run", "{0}"], "see oneshot-lit report --help"),
    ],
)
def test_mistakes_are_one_line(
    command, story: list[Path], tmp_path: Path, words: list[str], said: str
) -> None:
    words = [word.format(story[0]) for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "report"]
    done = command("report", *words, *out)
    assert done.code == 2
    assert said in done.error
    assert not (tmp_path / "report").exists()


def test_a_mistake_leaves_the_earlier_report(command, story: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "report"
    assert command("report", "--runs", *story, "--out", out).code == 0
    before = (out / "report.html").read_bytes()
    (story[1] / "outcomes.jsonl").write_text("{\n")
    done = command("report", "--runs", *story, "--out", out)
    assert done.code == 2
    assert "outcomes.jsonl row 1: not JSON" in done.error
    assert (out / "report.html").read_bytes() == before


def test_help_is_quick(command) -> None:
    done = command("report", "--help")
    assert done.code == 0
    assert "before=runs/aligned" in done.out
    code = (
        "import sys; from oneshot_lit.cli.main import main; main(['report', '--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'scipy', 'pandas', 'matplotlib')))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert run.returncode == 0


def test_folders_and_names_with_equal_signs(tmp_path: Path) -> None:
    from oneshot_lit.cli.report import named_folders

    folder = tmp_path / "lr=1e-4"
    folder.mkdir()
    assert named_folders([str(folder)]) == {"lr=1e-4": folder}
    assert named_folders([f"patched={folder}"]) == {"patched": folder}
    assert named_folders([f"metric={folder}"]) == {"metric": folder}
    with pytest.raises(OneShotError, match="'all runs' is a row of the tables"):
        named_folders([f"all runs={folder}"])
