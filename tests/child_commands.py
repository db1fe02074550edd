"""Commands in processes of their own, which never outlive a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start the command with as many threads as this process has, so that sums round alike."""
    threads = str(torch.get_num_threads())
    return subprocess.Popen(
        [sys.executable, "-m", "oneshot_lit", *words],
        env={**os.environ, "OMP_NUM_THREADS": threads, "GLOO_SOCKET_IFNAME": "lo"},
        stdout=subprocess.DEVNULL,
        stderr=log.open("w"),
        start_new_session=True,
    )


def finish(words: list[str], log: Path, seconds: float = 150) -> int:
    """Return the exit code; all that was started is gone after so many seconds."""
    process = start(words, log)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        pytest.fail(f"still running after {seconds} s: {log.read_text()[-3000:]}")
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
