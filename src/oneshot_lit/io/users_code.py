"""Exceptions in a user's own code keep their traceback, also out of a constructor or an import.

jsonargparse catches what a constructor or an import raises, tries another reading of the value, and
keeps the text alone. A `BaseException` takes the error past it.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import jsonargparse

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.machine_errors import causes
from oneshot_lit.io.provenance import is_users_file

_carrying = False


class _CarriedError(BaseException):
    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def with_errors_carried_out(do: Callable[[], Any]) -> Any:
    """Return what `do` returns; what `carried` functions and `carry_out` raise comes as it was."""
    global _carrying
    _carrying = True
    # The last to be asked; it builds what no other instantiator does.
    jsonargparse.add_instantiator(_build, object, subclasses=True)
    try:
        return do()
    except _CarriedError as carrier:
        raised = carrier.error
    finally:
        _carrying = False
    # Outside of the handler, so that the carrier does not show in the traceback.
    raise raised


def carried(instantiate: Callable[..., Any]) -> Callable[..., Any]:
    """Return an instantiator of jsonargparse whose errors are carried out.

    A class of an installed package may refuse its arguments; then the user can correct them.
    """

    @wraps(instantiate)
    def build(class_type: type, *args: Any, **kwargs: Any) -> Any:
        try:
            return instantiate(class_type, *args, **kwargs)
        except Exception as error:
            # Optimisers and schedulers are built later, when nothing waits for a carrier.
            if not _carrying:
                raise
            carry_out(_refusal(class_type, error) or error)

    return build


def carry_out(error: Exception) -> None:
    """Raise an error past jsonargparse, out of `with_errors_carried_out`."""
    raise _CarriedError(error) from None


def users_error(error: BaseException | None) -> Exception | None:
    """Return the error, among those that led to one, that came through a user's own code."""
    if error is None:
        return None
    for cause in causes(error):
        if isinstance(cause, Exception) and users_frame(cause) is not None:
            return cause
    return None


def users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost place of a traceback that lies in a user's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        # The file itself is never entered.
        frames.append(traceback.FrameSummary(error.filename, error.lineno, "<module>"))
    return next((f for f in reversed(frames) if is_users_file(Path(f.filename))), None)


@carried
def _build(class_type: type, *args: Any, **kwargs: Any) -> Any:
    return class_type(*args, **kwargs)


def _refusal(class_type: type, error: Exception) -> OneShotError | None:
    """Return the line for a class of an installed package that refused its arguments."""
    own = class_type.__module__.partition(".")[0] == "oneshot_lit"
    if own or isinstance(error, OneShotError) or users_frame(error) is not None:
        return None
    if not isinstance(error, (ValueError, TypeError, ImportError)):
        return None
    refused = OneShotError(f"{class_type.__qualname__}: {' '.join(str(error).split())}")
    refused.__cause__ = error
    return refused
