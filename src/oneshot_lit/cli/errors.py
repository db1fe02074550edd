"""Which errors of a run are the user's mistakes, shown in one line; others show a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.machine_errors import causes, full_disk, unreachable
from oneshot_lit.io.users_code import raised_in, users_error

# What Lightning raises when it refuses an argument, or the machine lacks something.
_REFUSALS = (ValueError, TypeError, RuntimeError, ImportError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise a `OneShotError` for every error that the user can correct, and others unchanged."""
    try:
        yield
    except OneShotError:
        raise
    except Exception as error:
        if (line := mistake_in(error)) is not None:
            raise OneShotError(line) from error
        raise


def mistake_in(error: BaseException) -> str | None:
    """Return a line on what the user can correct, or None for an error that needs its traceback.

    Errors raised through a user's own code need it, unless they are a `OneShotError`.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    of_user = users_error(error)
    for cause in causes(error):
        if isinstance(cause, OneShotError):
            return str(cause)
        if cause is of_user:
            break
    if (line := full_disk(error) or unreachable(error)) is not None:
        return line
    if of_user is not None:
        return None
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if type(error).__module__.startswith("deepspeed."):
        return f"trainer.strategy: DeepSpeed: {error}"
    by_lightning = isinstance(error, _REFUSALS) and raised_in(error).startswith("lightning.")
    return str(error) if by_lightning or isinstance(error, MisconfigurationException) else None
