"""Runs of two processes end: both of them, soon, with one line and the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SECONDS = 15
LAUNCHER = ["-m", "oneshot_lit"]


class Run:
    """A command with two processes; everything that it starts is gone at the end of the test."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.root, self.log = folder / "run", folder / "log"
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "lo",
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        self.parent = subprocess.Popen(
            [sys.executable, *LAUNCHER, *words],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=self.log.open("w"),
            start_new_session=True,
        )

    def child(self) -> int:
        """Wait for the first checkpoint and return the process that Lightning started."""
        last, ends = self.root / "checkpoints" / "last.ckpt", time.monotonic() + 180
        while not last.exists() and time.monotonic() < ends and self.parent.poll() is None:
            time.sleep(0.02)
        assert last.exists(), self.log.read_text()
        children = Path(f"/proc/{self.parent.pid}/task/{self.parent.pid}/children")
        (child,) = map(int, children.read_text().split())
        return child

    def end(self, seconds: float) -> int:
        """Return the exit code, once no process of the command is left."""
        ends = time.monotonic() + seconds
        code = self.parent.wait(seconds)
        while self.lives():
            assert time.monotonic() < ends, "an orphan lives on"
            time.sleep(0.05)
        return code

    def lives(self) -> bool:
        try:
            os.killpg(self.parent.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def errors(self) -> list[str]:
        text = self.log.read_text()
        assert "Traceback" not in text, text
        return [line for line in text.splitlines() if line.startswith("oneshot-lit: ")]

    def check_checkpoint(self) -> None:
        folder = self.root / "checkpoints"
        assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] > 0
        assert not (self.root / "model").exists()


@pytest.fixture
def words(fit_words: list[str]) -> list[str]:
    words = [*fit_words, "--trainer.max_epochs", "5000", "--checkpoint.max_share", "1"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "2"]
    return [*words, "--trainer.callbacks", "null"]


@pytest.fixture
def runs(words: list[str], tmp_path: Path) -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        if run.lives():
            os.killpg(run.parent.pid, signal.SIGKILL)
        run.parent.wait(10)


@pytest.fixture
def start(runs: list[Run], words: list[str], tmp_path: Path):
    def start(*more: str) -> Run:
        runs.append(Run([*words, *more], tmp_path))
        return runs[-1]

    return start


@pytest.mark.slow
@pytest.mark.parametrize("who", ["child", "parent"])
def test_a_killed_process_ends_the_run(start, who: str) -> None:
    run = start()
    child = run.child()
    os.kill(child if who == "child" else run.parent.pid, signal.SIGKILL)
    code = run.end(SECONDS)
    run.check_checkpoint()
    if who == "parent":
        assert code == -signal.SIGKILL
        assert run.errors() == []
        return
    assert code == 1
    (line,) = run.errors()
    assert "process 1 of the run ended (killed by signal 9)" in line
    assert line.endswith("resume with --ckpt_path last.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "to", "code"), [(signal.SIGTERM, "parent", 143), (signal.SIGINT, "all", 130)]
)
def test_a_stopped_run_leaves_no_process(start, sent: signal.Signals, to: str, code: int) -> None:
    run = start()
    run.child()
    if to == "all":
        os.killpg(run.parent.pid, sent)
    else:
        run.parent.send_signal(sent)
    assert run.end(SECONDS) == code
    (line,) = run.errors()
    assert line.endswith("resume with --ckpt_path last.")


MISTAKE = "training loss is not finite; lower model.optimizer.lr."


def failing(ranks: str, how: str, *more: str) -> list[str]:
    words = ["--model", "failing.Failing", "--model.ranks", ranks, "--model.how", how]
    return [*words, *more]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "prefix"), [("[1]", "process 1: "), ("[0, 1]", "")])
def test_a_mistake_is_told_once(start, ranks: str, prefix: str) -> None:
    run = start(*failing(ranks, "mistake"))
    assert run.end(180) == 2
    assert run.errors() == [f"oneshot-lit: error: {prefix}{MISTAKE}"]
