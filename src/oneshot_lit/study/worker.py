"""Runs a command of a study in its own process, forked from a server with everything imported.

Importing Lightning and transformers takes longer than a micro-world stage; the server does it once.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any


def start_server(preload: Sequence[str]) -> Any:
    """Return a context whose processes start with everything imported; the imports begin now."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    forkserver.ensure_running()
    return context


def run_logged(
    run_command: Callable[[Sequence[str]], int],
    arguments: Sequence[str],
    log: str,
    threads: int | None = None,
) -> None:
    """Run a command with its output in a file; the process's exit code is the command's.

    Args:
        run_command: Runs a command line and returns its exit code.
        arguments: The command line, without the program's name.
        log: The file.
        threads: How many threads PyTorch may use; None for no limit.
    """
    _end_with_parent()
    if threads is not None:
        import torch

        # Parallel processes that each use every core are slower than one after another.
        torch.set_num_threads(threads)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (
        os.fdopen(n, "w", buffering=1, encoding="utf-8", errors="backslashreplace") for n in (1, 2)
    )
    try:
        code = run_command(arguments)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _end_with_parent() -> None:
    """End when the study ends, so that a second study never runs beside a stage of the first."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def last_line(log: Path) -> str:
    """Return the line that says why a command failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("oneshot-lit: error: ")]
    return (errors or said or ["no output"])[-1].removeprefix("oneshot-lit: error: ")
