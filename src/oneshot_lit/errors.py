"""The one exception that reaches users: a single line and exit code 2, never a traceback."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator


class OneShotError(Exception):
    """A mistake in the input that the user can correct.

    The message is one line that names the file, row or key and says what to do. `oneshot-lit`
    prints it without a traceback and exits with code 2; library users catch it as an exception.
    """

    code = 2


class RowError(OneShotError):
    """A faulty row of a source; the source may also leave the row out.

    Attributes:
        origin: Its file and row.
        reason: What is wrong, without any text of the row, so that it can be counted and recorded.
        advice: The rest of the message.
    """

    def __init__(self, origin: str, reason: str, advice: str = ".") -> None:
        super().__init__(origin, reason, advice)
        self.origin, self.reason, self.advice = origin, reason, advice

    def __str__(self) -> str:
        return f"{self.origin}: {self.reason}{self.advice}"


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the latest first."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


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
