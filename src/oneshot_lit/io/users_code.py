"""Which exceptions come through a user's own code: they are shown with their traceback."""

from __future__ import annotations

import traceback
from pathlib import Path

from oneshot_lit.errors import causes
from oneshot_lit.io.provenance import is_users_file


def users_error(error: BaseException | None) -> Exception | None:
    """Return the error, among those that led to one, that came through a user's own code."""
    if error is None:
        return None
    for cause in causes(error):
        if isinstance(cause, Exception) and users_frame(cause) is not None:
            return cause
    return None


def users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost place of a traceback that is in a user's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        # The file itself is never entered.
        frames.append(traceback.FrameSummary(error.filename, error.lineno, "<module>"))
    return next((f for f in reversed(frames) if is_users_file(Path(f.filename))), None)


def raised_in(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
