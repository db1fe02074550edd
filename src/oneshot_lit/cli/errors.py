"""Which errors of a run are the user's mistakes, shown in one line; others show a traceback."""

from __future__ import annotations

import sys

from oneshot_lit.errors import OneShotError, causes
from oneshot_lit.io.users_code import raised_in, users_error

# What Lightning raises when it refuses an argument, or the machine lacks something.
_REFUSALS = (ValueError, TypeError, RuntimeError, ImportError)


def mistake_in(error: BaseException) -> str | None:
    """Return a line on what the user can correct, or None for an error that needs its traceback.

    Errors raised through a user's own code need it, unless they are a `OneShotError`.
    """
    of_user = users_error(error)
    for cause in causes(error):
        if isinstance(cause, OneShotError):
            return str(cause)
        if cause is of_user:
            return None
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if type(error).__module__.startswith("deepspeed."):
        return f"trainer.strategy: DeepSpeed: {error}"
    if "lightning" not in sys.modules:
        return None
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    by_lightning = isinstance(error, _REFUSALS) and raised_in(error).startswith("lightning.")
    return str(error) if by_lightning or isinstance(error, MisconfigurationException) else None
