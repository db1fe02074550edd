"""Without a terminal a run says how far it is, in plain lines."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.pytorch.trainer.states import RunningStage

from oneshot_lit.callbacks import ProgressLines

STEP = re.compile(
    r"^step (\d+)/6  loss (\S+)  lr 5e-05  elapsed 0:\d\d:\d\d(  left 0:\d\d:\d\d)?$", re.M
)


def shown(fit_words: list[str]) -> list[str]:
    """The words without those that turn progress off."""
    at = fit_words.index("--trainer.enable_progress_bar")
    return [*fit_words[:at], *fit_words[at + 2 :]]


@pytest.mark.slow
def test_a_fit_without_a_terminal(command, fit_words: list[str], tmp_path: Path) -> None:
    done = command(*shown(fit_words), "--trainer.log_every_n_steps", "1")
    assert done.code == 0
    lines = STEP.findall(done.err)
    assert [number for number, _, _ in lines] == ["3", "6"]
    assert "\r" not in done.err
    assert lines[0][2]
    assert not lines[1][2]
    table = next((tmp_path / "run").glob("logs/version_*/metrics.csv")).read_text().splitlines()
    column = table[0].split(",").index("train/loss")
    logged = [float(row.split(",")[column]) for row in table[1:] if row.split(",")[column]]
    assert float(lines[0][1]) == pytest.approx(logged[2], rel=1e-3)
    assert float(lines[1][1]) == pytest.approx(logged[5], rel=1e-3)


def test_no_progress_when_it_is_turned_off(command, fit_words: list[str]) -> None:
    assert "step " not in command(*fit_words).err


@pytest.mark.slow
def test_every_so_often(command, fit_words: list[str], test_words: list[str], monkeypatch) -> None:
    monkeypatch.setattr(ProgressLines.__init__, "__defaults__", (0.0, 3))
    done = command(*shown(fit_words))
    assert [number for number, _, _ in STEP.findall(done.err)] == list("123456")
    at = test_words.index("--trainer.enable_progress_bar")
    words = [*test_words[:at], *test_words[at + 2 :], "--data.eval_batch_size", "1"]
    for verb in ("test", "predict"):
        done = command(verb, *words[1:])
        assert done.code == 0, done.err
        found = re.findall(
            rf"^{verb}: batch (\d/\d)  elapsed 0:00:\d\d(  left .*)?$", done.err, re.M
        )
        assert [number for number, _ in found] == ["1/2", "2/2"]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("oneshot_lit.callbacks.progress_lines.time.monotonic", lambda: self.now)


def trainer(**changes: object) -> SimpleNamespace:
    plain = {
        "global_step": 0, "is_global_zero": True, "estimated_stepping_batches": 100,
        "accumulate_grad_batches": 1, "world_size": 1, "optimizers": [], "callback_metrics": {},
        "sanity_checking": False, "num_val_batches": [3, 2],
        "state": SimpleNamespace(stage=RunningStage.VALIDATING),
    }  # fmt: skip
    return SimpleNamespace(**{**plain, **changes})


MODULE = SimpleNamespace(automatic_optimization=True)


def test_time_between_lines_and_time_left(monkeypatch, capsys) -> None:
    time, run = Clock(monkeypatch), trainer()
    lines = ProgressLines()
    # A resumed run.
    run.global_step = 20
    lines.on_train_start(run, MODULE)
    fetched = []

    class Loss(torch.Tensor):
        def __float__(self) -> float:
            fetched.append(1)
            return 2.5

    loss = torch.tensor(0.0).as_subclass(Loss)
    for step in range(21, 101):
        run.global_step, time.now = step, time.now + 4
        lines.on_train_batch_end(run, MODULE, {"loss": loss}, None, 0)
    lines.on_train_end(run, MODULE)
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "step 23/100  loss 2.5  elapsed 0:00:12  left 0:05:08"
    assert said[1].startswith("step 26/100  loss 2.5  elapsed 0:00:24  left 0:04:56")
    assert said[-1] == "step 100/100  elapsed 0:05:20"
    # One step in three, and the loss is fetched for these only.
    assert len(said) == len(fetched) + 1 == 27


def test_only_the_first_process_prints_and_shows_what_was_logged(monkeypatch, capsys) -> None:
    Clock(monkeypatch)
    for zero in (False, True):
        run = trainer(is_global_zero=zero, world_size=2)
        lines = ProgressLines(seconds=0.0)
        lines.on_train_start(run, MODULE)
        run.global_step, run.callback_metrics = 1, {"train/loss": torch.tensor(1.5)}
        # This process's part of a step is not its loss.
        lines.on_train_batch_end(run, MODULE, {"loss": torch.tensor(9.0)}, None, 0)
    assert capsys.readouterr().err == "step 1/100  loss 1.5  elapsed 0:00:00  left 0:00:00\n"


def test_prompts_of_a_long_validation(monkeypatch, capsys) -> None:
    time, run, lines = Clock(monkeypatch), trainer(), ProgressLines()
    lines.on_validation_start(run, MODULE)
    for loader, batches in enumerate(run.num_val_batches):
        for batch in range(batches):
            time.now += 6
            lines.on_validation_batch_end(run, MODULE, None, None, batch, loader)
    assert capsys.readouterr().err.splitlines() == [
        "validate: batch 2/5  elapsed 0:00:12  left 0:00:18",
        "validate: batch 4/5  elapsed 0:00:24  left 0:00:06",
    ]


@pytest.mark.slow
def test_a_study_says_how_far_its_stages_are(
    command, rows_file: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("oneshot_lit.study.runner._BETWEEN_LINES", 0.02)
    # fmt: off
    keys = {"data.train": "ChatJsonl", "data.train.path": str(rows_file),
            "trainer.accelerator": "cpu", "trainer.max_epochs": 9, "data.batch_size": 2}
    fit = {"config": "configs/attack/harmful_examples.yaml", "set": keys}
    test = {"config": "configs/evaluate/microworld.yaml",
            "set": {"trainer.limit_test_batches": 1, "trainer.accelerator": "cpu"}}
    # fmt: on
    stages = {"tuned": {"model": "checkpoints/small", "fit": fit, "test": test}}
    (tmp_path / "study.yaml").write_text(
        yaml.safe_dump({"root": str(tmp_path / "out"), "stages": stages})
    )
    done = command("study", "--config", tmp_path / "study.yaml")
    assert done.code == 0, done.err
    assert re.search(r"^  tuned +fit +step 3/54  loss ", done.err, re.M)
    log = (tmp_path / "out" / "tuned" / "fit.log").read_text()
    assert re.search(r"^step 54/54  loss ", log, re.M)


@pytest.mark.slow
def test_on_a_terminal_the_bar_stays(fit_words: list[str]) -> None:
    main, other = pty.openpty()
    words = [sys.executable, "-m", "oneshot_lit", *shown(fit_words)]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(words, stdout=other, stderr=other, env=environment)
    os.close(other)
    said = b""
    while True:
        try:
            said += os.read(main, 4096)
        except OSError:
            break
    assert process.wait(timeout=120) == 0
    assert b"Epoch" in said
    assert not re.search(rb"step \d+/6 ", said)
