"""Shows the progress of a job without optimiser steps: a line from time to time."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

# Seconds between two lines.
_BETWEEN_LINES = 10.0


def progress_lines(command: str, enabled: bool = True) -> Callable[[int, int | None, str], None]:
    """Return a function that takes the steps done, the steps in all, and a few words."""
    said = time.monotonic()

    def say(done: int, total: int | None, text: str) -> None:
        nonlocal said
        now = time.monotonic()
        if enabled and (now - said >= _BETWEEN_LINES or (done and done == total)):
            of = "" if total is None else f" of {total}"
            words = f": {text}" if text else ""
            print(f"{command}: step {done}{of}{words}", file=sys.stderr, flush=True)
            said = now

    return say
