"""Which errors of a run are a mistake of the user's, told in one line; others show a traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.machine_errors import causes, full_disk, unreachable
from oneshot_lit.io.users_code import raised_in, users_error

# What Lightning raises where it refuses an argument, or what the machine cannot do.
_REFUSALS = (ValueError, TypeError, RuntimeError, ImportError)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Raise a `OneShotError` for every error that the user can correct; others come as they are."""
    try:
        yield
    except OneShotError:
        raise
    except Exception as error:
        if (line := mistake_in(error)) is not None:
            raise OneShotError(line) from error
        raise


def mistake_in(error: BaseException) -> str | None:
    """Return what the user can correct about an error, or None for one that needs its traceback.

    What comes through a user's own code is such an error, unless it is a `OneShotError`.
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
