"""Shows the progress of a command: a bar on a terminal, elsewhere a line from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

# Seconds between two lines of a log file.
_BETWEEN_LINES = 10.0


@contextmanager
def shown_progress(
    command: str, enabled: bool = True
) -> Iterator[Callable[[int, int | None, str], None]]:
    """Yield a function that takes the steps done, the steps in all, and a few words.

    Args:
        command: The command that runs.
        enabled: Show anything at all.
    """
    console = Console(stderr=True, highlight=False)
    if not enabled or not console.is_terminal:
        yield _lines(command) if enabled else lambda done, total, text: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    words = TextColumn("{task.fields[words]}")
    with Bar(*columns, TimeRemainingColumn(), words, console=console, transient=True) as bar:
        task = bar.add_task(command, total=None, words="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, words=text)


def _lines(command: str) -> Callable[[int, int | None, str], None]:
    said = time.monotonic()

    def say(done: int, total: int | None, text: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _BETWEEN_LINES or (done and done == total):
            of = "" if total is None else f" of {total}"
            words = f": {text}" if text else ""
            print(f"{command}: step {done}{of}{words}", file=sys.stderr, flush=True)
            said = now

    return say
