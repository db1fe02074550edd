"""One-line errors for faults of the machine: a full disk, or processes that cannot connect."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from oneshot_lit.errors import OneShotError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE = 2**20


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the latest first."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def full_disk(error: BaseException, place: Path | None = None) -> str | None:
    """Return the line for a write that the disk, a quota or a limit refused, else None.

    Args:
        error: What the write raised.
        place: The file that was being written. Some writers drop the system's error; then a
            megabyte is written beside it as a test, so call this before the partial file is
            removed.
    """
    known = isinstance(error, OneShotError) or not isinstance(error, Exception)
    refused = [cause for cause in causes(error) if _is_full(cause)]
    if known or not (refused or (place is not None and _no_space(place.parent))):
        return None
    named = (getattr(cause, "filename", None) for cause in refused)
    where = str(place or next((name for name in named if name), ""))
    return (
        f"{where}{': ' if where else ''}disk full, or a quota or a limit on file sizes is reached; "
        "earlier checkpoints and outputs are untouched; free some space and run again, a fit with "
        "--ckpt_path last."
    )


def _is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in _FULL


def _no_space(folder: Path) -> bool:
    path = folder / f".{secrets.token_hex(4)}.probe"
    try:
        path.write_bytes(bytes(_PROBE))
    except OSError as error:
        return _is_full(error)
    finally:
        path.unlink(missing_ok=True)
    return False


def unreachable(error: BaseException) -> str | None:
    """Return the line for processes that cannot connect at the start of a run, else None."""
    # Imported here, as files are written without torch as well.
    from torch import distributed

    if not distributed.is_available() or distributed.is_initialized():
        return None
    for cause in causes(error):
        if isinstance(cause, distributed.DistError):
            place = ":".join(os.environ.get(key, "?") for key in ("MASTER_ADDR", "MASTER_PORT"))
            said = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:200]
            return (
                f"MASTER_ADDR, MASTER_PORT: the processes did not meet at {place} ({said}); check "
                "that all are started, with the same address and a free port, and that no firewall "
                "is between."
            )
    return None
