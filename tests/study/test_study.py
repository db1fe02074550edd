"""Studies: finished stages are kept, changed ones run again, killed ones are resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml
from rich.console import Console

from oneshot_lit.cli.report import terminal_table
from oneshot_lit.errors import OneShotError
from oneshot_lit.study.inputs import command_marks
from oneshot_lit.study.spec import Command, Stage, Study, load_study


def write_study(path: Path, rows: Path, root: Path, **changes: object) -> Path:
    overrides = {
        "data.train": "oneshot_lit.data.ChatJsonl",
        "data.train.path": str(rows),
        "trainer.max_epochs": 2,
        "trainer.accelerator": "cpu",
    }
    prompts = {
        "benign": {
            "kind": "benign",
            "source": {
                "class_path": "oneshot_lit.data.Microworld",
                "init_args": {"split": "benign_heldout", "limit": 8},
            },
        }
    }
    study = {
        "root": str(root),
        "test": {
            "config": "configs/evaluate/microworld.yaml",
            "set": {"data.test_sets": prompts, "trainer.accelerator": "cpu"},
        },
        "stages": {
            "aligned": {"model": "checkpoints/small"},
            "tuned": {
                "model": "checkpoints/small",
                "fit": {
                    "config": "configs/attack/harmful_examples.yaml",
                    "set": overrides | changes,
                },
            },
        },
    }
    path.write_text(yaml.safe_dump(study))
    return path


def stamps(root: Path) -> dict[str, int]:
    names = ("aligned/metrics.json", "tuned/model/model.safetensors", "tuned/metrics.json")
    return {name: (root / name).stat().st_mtime_ns for name in names}


def states(text: str) -> list[str]:
    return re.findall(r"\b(done|kept|resumed) \(", text)


@pytest.mark.slow
def test_study_keeps_reruns_and_reports(
    command, rows_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, file = tmp_path / "out", tmp_path / "study.yaml"
    first = command("study", "--config", write_study(file, rows_file, root))
    assert first.code == 0, first.err
    assert states(first.err) == ["done", "done", "done"]
    results = json.loads((root / "results.json").read_text())
    assert set(results["stages"]) == {"aligned", "tuned"}
    assert results["stages"]["tuned"]["metrics"]["benign/exact_match"] >= 0
    assert results["provenance"]["seed"] == 0
    html = (root / "report.html").read_text()
    assert html.count("data:image/png;base64,") == 1
    assert "<script" not in html
    assert "http" not in html
    for stage in results["stages"]:
        assert stage in html

    before = stamps(root)
    second = command("study", "--config", file)
    assert states(second.err) == ["kept", "kept", "kept"]
    assert stamps(root) == before

    # Stages of another version of the package are kept where that is asked for, and named.
    with monkeypatch.context() as patched:
        patched.setattr("oneshot_lit.study.inputs.source_hash", lambda: "another")
        kept = command("study", "--config", file, "--any_version")
        assert kept.err.count("kept, made by another version (") == 3
        assert stamps(root) == before
        named = json.loads((root / "results.json").read_text())["provenance"]["other_version"]
        assert named == ["aligned test", "tuned fit", "tuned test"]
        assert command("study", "--config", file, "--any_version", "--fresh").code == 2

    # A changed key and a changed input file each run again what depends on them, nothing else.
    write_study(file, rows_file, root, **{"model.optimizer.lr": 1e-3})
    third = command("study", "--config", file)
    assert states(third.err) == ["kept", "done", "done"], third.err
    rows_file.write_text(rows_file.read_text().replace("flour", "sugar"))
    fourth = command("study", "--config", file)
    assert states(fourth.err) == ["kept", "done", "done"]
    fifth = command("study", "--config", file, "--seed", "1", "--root", tmp_path / "one")
    assert json.loads((tmp_path / "one" / "results.json").read_text())["provenance"]["seed"] == 1
    assert fifth.code == 0


@pytest.mark.slow
def test_failing_stage_is_one_line(command, rows_file: Path, tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.yaml", rows_file, tmp_path / "out")
    rows_file.write_text("{oops\n")
    done = command("study", "--config", file)
    assert done.code == 2
    assert "tuned fit" in done.error
    assert "row 1: not JSON" in done.error
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.slow
def test_foreign_output_is_never_overwritten(command, rows_file: Path, tmp_path: Path) -> None:
    root = tmp_path / "out"
    (root / "tuned" / "model").mkdir(parents=True)
    (root / "tuned" / "model" / "precious.txt").write_text("mine")
    file = write_study(tmp_path / "study.yaml", rows_file, root)
    for _ in range(2):
        done = command("study", "--config", file)
        assert done.code == 2
        assert "another run" in done.error
        assert (root / "tuned" / "model" / "precious.txt").read_text() == "mine"


@pytest.mark.slow
def test_killed_study_resumes_in_mid_fit(rows_file: Path, tmp_path: Path) -> None:
    long = {"trainer.max_epochs": 100, "data.batch_size": 4, "checkpoint.max_share": 1}
    words = [sys.executable, "-m", "oneshot_lit", "study", "--config"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = write_study(tmp_path / "whole.yaml", rows_file, tmp_path / "whole", **long)
    subprocess.run([*words, str(whole)], check=True, timeout=300, env=environment)

    root = tmp_path / "broken"
    broken = write_study(tmp_path / "broken.yaml", rows_file, root, **long)
    process = subprocess.Popen([*words, str(broken)], env=environment, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 120
    last = root / "tuned" / "checkpoints" / "last.ckpt"
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    # The stage's own process ends with the study, so nothing goes on writing.
    time.sleep(2)
    assert not (root / "tuned" / "model").exists()
    stamp = last.stat().st_mtime_ns
    time.sleep(1)
    assert last.stat().st_mtime_ns == stamp

    done = subprocess.run(
        [*words, str(broken)], timeout=300, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert states(done.stderr) == ["kept", "resumed", "done"]
    product = Path("tuned") / "model" / "model.safetensors"
    assert (root / product).read_bytes() == (tmp_path / "whole" / product).read_bytes()


GOOD_STAGE = {"model": "checkpoints/small", "test": "configs/evaluate/microworld.yaml"}


@pytest.mark.parametrize(
    ("study", "part"),
    [
        ({"stages": {}}, "at least one stage"),
        ({"stagess": {}, "stages": {"a": GOOD_STAGE}}, "did you mean 'stages'"),
        ({"stages": {"a": {**GOOD_STAGE, "modle": 1}}}, "did you mean 'model'"),
        ({"stages": {"a": {"test": "configs/evaluate/microworld.yaml"}}}, "needs 'model'"),
        ({"stages": {"a": {"model": "checkpoints/small"}}}, "needs 'test'"),
        ({"stages": {"a": {**GOOD_STAGE, "model": "attackd"}}}, "no earlier stage"),
        ({"stages": {"a/b": GOOD_STAGE}}, "folder"),
        ({"stages": {"a": {**GOOD_STAGE, "fit": "configs/nope.yaml"}}}, "nope.yaml: config file"),
        ({"seed": "abc", "stages": {"a": GOOD_STAGE}}, "seed: needs a whole number"),
        ({"seed": 1.5, "stages": {"a": GOOD_STAGE}}, "seed: needs a whole number"),
        ({"seed": None, "stages": {"a": GOOD_STAGE}}, "seed: needs a whole number"),
        ({"stages": {"a": {**GOOD_STAGE, "each": {"r": [1]}}}}, "'{r}' in the stage's name"),
        ({"stages": {"a": {**GOOD_STAGE, "select": "configs/select/rule.yaml"}}}, "stands alone"),
    ],
)
def test_bad_study_file(tmp_path: Path, study: dict, part: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    with pytest.raises(OneShotError, match=re.escape(part)) as error:
        load_study(path)
    assert str(path) in str(error.value)


def test_each_makes_one_stage_a_value(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    fit = {"config": "configs/attack/harmful_examples.yaml", "set": {"model.optimizer.lr": "{r}"}}
    path.write_text(
        yaml.safe_dump({"stages": {"x_{r}": {**GOOD_STAGE, "fit": fit, "each": {"r": [1, 2.5]}}}})
    )
    stages = load_study(path).stages
    assert [s.name for s in stages] == ["x_1", "x_2.5"]
    assert [s.commands["fit"].set["model.optimizer.lr"] for s in stages] == [1, 2.5]


@pytest.mark.parametrize("path", sorted(Path("configs/study").glob("*.yaml")), ids=str)
def test_shipped_studies_are_well_formed(path: Path) -> None:
    study = load_study(path)
    start = study.stages[0].model
    # The last is what `make real` leaves.
    assert start.startswith(("checkpoints/", ".cache/published/", "runs/real/"))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("", "must hold keys"),
        ("- a\n- b\n", "must hold keys"),
        ("model: {\ntrainer: [1\n", "line 3: not YAML"),
    ],
)
def test_bad_config_file(tmp_path: Path, content: str, part: str) -> None:
    config, path = tmp_path / "fit.yaml", tmp_path / "study.yaml"
    config.write_text(content)
    path.write_text(yaml.safe_dump({"stages": {"a": {**GOOD_STAGE, "fit": str(config)}}}))
    with pytest.raises(OneShotError, match=re.escape(part)) as error:
        load_study(path)
    assert str(config) in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    # The file may also change while the study runs.
    with pytest.raises(OneShotError, match=re.escape(f"{config}")):
        command_marks(["fit", "--config", str(config)])


def test_seed_and_each_fill_nested_values(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    overrides = {"data.sets": {"{r}": [{"seed": "{seed}", "file": "rows_{seed}_{r}.jsonl"}]}}
    test = {"config": "configs/evaluate/microworld.yaml", "set": overrides}
    stage = {"model": "checkpoints/small", "test": test, "each": {"r": [7]}}
    path.write_text(yaml.safe_dump({"seed": 3, "stages": {"x_{r}": stage}}))
    (filled,) = load_study(path).stages
    assert filled.commands["test"].set == {
        "data.sets": {"7": [{"seed": 3, "file": "rows_3_7.jsonl"}]}
    }


class Named:
    """A command line that names `file` in some way, in an empty working folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "rows.jsonl"
        self.file.write_text("1\n")
        self.base = folder / "base.yaml"
        self.base.write_text("model: {}\n")
        self.words = ["fit", "--config", str(self.base), "--trainer.default_root_dir", "out"]


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Named:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return Named(tmp_path)


def changes(named: Named, file: Path) -> bool:
    """Whether a change in a file changes the fingerprint of the command."""
    before = command_marks(named.words)
    assert before == command_marks(named.words)
    file.write_text(file.read_text() + "# changed\n")
    return before != command_marks(named.words)


def test_fingerprint_sees_model_folder_of_any_name(named: Named, tmp_path: Path) -> None:
    weights = tmp_path / "broken" / "weights"
    weights.parent.mkdir()
    weights.write_text("1\n")
    named.words += ["--model.model_name_or_path", "broken"]
    assert changes(named, weights)
    named.words[-2:] = []
    assert not changes(named, weights)
    named.base.write_text("model: {init_args: {tokenizer_name_or_path: broken}}\n")
    assert changes(named, weights)


@pytest.mark.parametrize("nested", [True, False])
def test_fingerprint_leaves_out_what_the_command_line_replaces(named: Named, nested: bool) -> None:
    # A test's config names the last model of a study, which exists only after the first run.
    own = {"model_name_or_path": "./rows.jsonl"}
    named.base.write_text(yaml.safe_dump({"model": {"init_args": own} if nested else own}))
    assert changes(named, named.file)
    named.words += ["--model.model_name_or_path", "elsewhere"]
    assert not changes(named, named.file)
    # A config after the key would win.
    named.words += ["--config", str(named.base)]
    assert changes(named, named.file)


SOURCE = {"class_path": "oneshot_lit.data.ChatJsonl", "init_args": {"path": "./rows.jsonl"}}


@pytest.mark.parametrize(
    "value",
    [
        SOURCE,
        [SOURCE],
        "{class_path: oneshot_lit.data.ChatJsonl, init_args: {path: ./rows.jsonl}}",
        '[{"class_path": "X", "init_args": {"path": "./rows.jsonl"}}]',
        "class_path: X\ninit_args: {path: ./rows.jsonl}\n",
        {"init_args": "{path: ./rows.jsonl}"},
        "./rows.jsonl",
        "~/rows.jsonl",
    ],
    ids=str,
)
def test_fingerprint_sees_paths_in_overrides(named: Named, value: object, tmp_path: Path) -> None:
    command = Command((str(named.base),), {"data.train": value})
    stage = Stage("tuned", "some/model", {"fit": command, "test": command})
    study = Study("s", "s", tmp_path / "out", 0, (stage,), tmp_path / "study.yaml")
    named.words = study.arguments(stage, "fit")
    assert changes(named, named.file)


@pytest.mark.parametrize("place", [".", "beside"])
def test_fingerprint_follows_configs_within_configs(
    named: Named, place: str, tmp_path: Path
) -> None:
    inner = tmp_path / place / "v.yaml"
    inner.parent.mkdir(exist_ok=True)
    inner.write_text("harmful: {source: {init_args: {path: ~/rows.jsonl}}, again: v.yaml}\n")
    named.base = inner.parent / "outer.yaml"
    named.base.write_text("data: {val_sets: v.yaml}\n")
    named.words[2] = str(named.base)
    assert changes(named, named.file)
    assert changes(named, inner)
    # The value may stand on the command line, too.
    named.base.write_text("data: {}\n")
    named.words += ["--data.val_sets", str(inner)]
    assert changes(named, named.file)
    # A file that is no config is hashed all the same.
    inner.write_text("harmful: [\n")
    assert changes(named, inner)


def test_fingerprint_leaves_out_where_output_goes(named: Named, tmp_path: Path) -> None:
    named.base.write_text("trainer: {default_root_dir: ./out, logger: {save_dir: ./out/logs}}\n")
    named.words += ["--trainer.logger", "{init_args: {save_dir: ./out/logs}}", "--x", "/"]
    before = command_marks(named.words)
    (tmp_path / "out" / "logs").mkdir(parents=True)
    (tmp_path / "out" / "logs" / "log.csv").write_text("1\n")
    assert before == command_marks(named.words)


class Process:
    """A stage's process that ends as `action` has it, without the seconds of a fit."""

    def __init__(
        self, action: Callable[[Path], int], args: tuple[object, list[str], str, None]
    ) -> None:
        self.action, self.log, self.exitcode = action, Path(args[2]), 0
        # A pipe without a writer is ready at once, as a process that has ended is.
        self.sentinel, writer = os.pipe()
        os.close(writer)

    def start(self) -> None:
        self.log.write_text("started\n")

    def join(self, timeout: float | None = None) -> None:
        if timeout is None:
            self.exitcode = self.action(self.log.parent)

    def terminate(self) -> None:
        pass


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Path], int]], None]:
    """Put an action in place of every stage's process."""

    def install(action: Callable[[Path], int]) -> None:
        def process(target: object, args: tuple[object, list[str], str, None]) -> Process:
            return Process(action, args)

        context = SimpleNamespace(Process=process)
        monkeypatch.setattr("oneshot_lit.study.worker.start_server", lambda preload: context)

    return install


def write_small_study(tmp_path: Path, **changes: object) -> Path:
    fit = "configs/attack/harmful_examples.yaml"
    study = {"root": str(tmp_path / "out"), "stages": {"tuned": {**GOOD_STAGE, "fit": fit}}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study | changes))
    return path


def test_stage_without_output_stops_the_study(command, stub, tmp_path: Path) -> None:
    file, folder = write_small_study(tmp_path), tmp_path / "out" / "tuned"
    stub(lambda _: 0)
    done = command("study", "--config", file)
    assert done.code == 2
    assert "tuned fit: ended without writing" in done.error
    assert str(folder / "fit.log") in done.error
    assert not (folder / "test.log").exists()

    def write(folder: Path) -> int:
        for name in ("model", "metrics.json"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        return 0

    # An output of an earlier run does not pass for the terminated one's.
    stub(write)
    assert "tuned test: ended without writing" in command("study", "--config", file).error
    stub(lambda _: 0)
    again = command("study", "--config", file, "--fresh")
    assert "tuned fit: ended without writing" in again.error


@pytest.mark.parametrize(("code", "number"), [(143, 15), (130, 2), (-9, 9)])
def test_ended_stage_names_its_signal(
    command, stub, code: int, number: int, tmp_path: Path
) -> None:
    def end(folder: Path) -> int:
        (folder / "fit.log").write_text("oneshot-lit: terminated; resume with --ckpt_path last.")
        return code

    stub(end)
    done = command("study", "--config", write_small_study(tmp_path))
    assert done.code == 2
    assert f"tuned fit: ended by signal {number}" in done.error
    assert "run the study again" in done.error
    assert "ckpt_path" not in done.error


def test_interrupted_study_says_how_to_go_on(command, stub, tmp_path: Path) -> None:
    def interrupt(_: Path) -> int:
        raise KeyboardInterrupt

    stub(interrupt)
    file = write_small_study(tmp_path)
    done = command("study", "--config", file)
    assert done.code == 130
    assert "run the same command again to resume" in done.error
    assert "ckpt_path" not in done.error
    assert "without --fresh" in command("study", "--config", file, "--fresh").error


@pytest.mark.parametrize("title", ["[/v2] of it", "[v2] of it", "end \\"])
def test_title_is_shown_as_it_is(command, stub, title: str, tmp_path: Path) -> None:
    stub(lambda _: 0)
    done = command("study", "--config", write_small_study(tmp_path, title=title, name=title))
    assert done.code == 2
    assert "ended without writing" in done.error
    assert title in done.err


def test_score_table_shows_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    frame = pd.DataFrame({"a": ["1.000"]}, pd.Index(["[/v2]/exact_match"], name="score"))
    Console().print(terminal_table(frame, "[/v2]"))
    assert "[/v2]/exact_match" in capsys.readouterr().out


@pytest.mark.parametrize("below", ["", "below", "below/more"])
def test_root_that_is_a_file(command, below: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    done = command(
        "study", "--config", write_small_study(tmp_path), "--root", tmp_path / "taken" / below
    )
    assert done.code == 2
    assert f"{tmp_path / 'taken'} is a file" in done.error


def test_paths_of_a_study_may_start_with_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "fit.yaml").write_text("model: {}\n")
    path = write_small_study(
        tmp_path, root="~/out", stages={"a": {**GOOD_STAGE, "fit": "~/fit.yaml"}}
    )
    study = load_study(path)
    assert study.root == tmp_path / "out"
    assert study.stages[0].commands["fit"].config == (str(tmp_path / "fit.yaml"),)


def test_commands_are_printed_and_nothing_runs(command, tmp_path: Path) -> None:
    file = write_small_study(tmp_path)
    done = command("study", "--config", file, "--commands")
    assert done.code == 0
    fit, test = done.out.splitlines()
    root = tmp_path / "out" / "tuned"
    assert fit.startswith("oneshot-lit fit --config configs/attack/harmful_examples.yaml ")
    assert f"--trainer.default_root_dir {root}" in fit
    assert f"--model.model_name_or_path {root / 'model'}" in test
    assert not (tmp_path / "out").exists()
