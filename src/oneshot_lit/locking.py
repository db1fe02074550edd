"""One process at a time in the results of a run, so that none undoes what another adds."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from oneshot_lit.errors import OneShotError
from oneshot_lit.files import name_full_disk

LOCK_FILE = ".results.lock"
# File systems without locks; writing there is as safe as before there were any.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


@contextmanager
def results_locked(root: Path) -> Iterator[None]:
    """Hold the results of a run for reading, changing and replacing them; others wait.

    The system frees the lock of a process that dies. Not reentrant: within the block the same
    process must not ask for it again.

    Args:
        root: Folder of the run; made if there is none.

    Raises:
        OneShotError: if nothing can be written there.
    """
    path = root / LOCK_FILE
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = _locked(path)
    except OSError as error:
        name_full_disk(error, path)
        raise OneShotError(f"{root}: cannot be written to ({error.strerror}).") from error
    try:
        yield
    finally:
        # Removed while it is held: whoever waits sees that its file is gone, and takes a new one.
        path.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def _locked(path: Path) -> int | None:
    """Return the handle of the locked file, None where the file system knows no locks."""
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_still(path, handle):
                return handle
        except OSError as error:
            os.close(handle)
            if error.errno in _NO_LOCKS:
                return None
            raise
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the path is the file that was opened, and not removed while this process waited."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(handle))
    except FileNotFoundError:
        return False
