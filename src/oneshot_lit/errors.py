"""The one exception that reaches users: a single line and exit code 2, never a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable


class OneShotError(Exception):
    """A mistake in the input that the user can correct.

    The message is one line that names the file, row or key and says what to do. `oneshot-lit`
    prints it without a traceback and exits with code 2; library users catch it as an exception.
    """

    code = 2


class RowError(OneShotError):
    """A faulty row of a source, which a source may leave out instead.

    Attributes:
        origin: Its file and row.
        kind: What is wrong, in words that hold nothing of the row: what is counted, and recorded
            where no text of a row may stand.
    """

    def __init__(self, message: str, origin: str = "", kind: str = "faulty") -> None:
        super().__init__(message)
        self.origin, self.kind = origin, kind


def nearest(name: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """Return the known name most similar to `name`, or None if nothing is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ' (did you mean X?)' for the nearest known name, or an empty string."""
    match = nearest(name, known)
    return f" (did you mean '{match}'?)" if match else ""


def fail(message: str, code: int = 2) -> int:
    """Print a mistake in one line and return the exit code."""
    print(f"oneshot-lit: error: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code
