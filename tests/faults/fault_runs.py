"""Start commands in processes of their own, with a hard limit on their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

# The helpers of several processes.
sys.path.append(str(Path(__file__).parent.parent / "strategies"))

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
TWO = ["--trainer.devices", "2", "--trainer.strategy"]


def start(words: list[Any], log: Path, umask: int = -1) -> subprocess.Popen[bytes]:
    """Start a command, with a group of its own and both streams in a file."""
    return subprocess.Popen(
        [sys.executable, "-m", "oneshot_lit", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=umask,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill what a command has left running."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


def finish(words: list[Any], log: Path, seconds: float = 150, umask: int = -1) -> tuple[int, str]:
    """Return exit code and output of a command, all of whose processes are gone by then."""
    process = start(words, log, umask)
    try:
        return process.wait(seconds), log.read_text()
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {seconds} s: {log.read_text()[-3000:]}")
    finally:
        end(process)


def wait_for(what: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until something is so while a command runs."""
    deadline = time.monotonic() + 120
    while not what():
        assert process.poll() is None, f"ended too early: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.02)
