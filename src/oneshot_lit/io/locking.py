"""One run at a time in a folder, and one process at a time in the results of a run.

The system frees the lock of a process that dies.
"""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import name_full_disk

LOCK_FILE = ".results.lock"
# Errors of file systems that have no locks; a run goes on without one there.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)

# What a command writes, which no other command may write at the same time. A fit replaces the model
# that others test, and removes their scores and answers.
_WRITES = {
    "fit": ("test", "predict"),
    "edit": ("test", "predict"),
    "test": ("test",),
    "predict": ("predict",),
}


@contextmanager
def run_locked(root: Path, command: str) -> Iterator[None]:
    """Keep other runs from writing the same files in a folder until the block ends.

    In a run of several processes only the first one calls this.

    Args:
        root: Folder of the run; made if there is none, and removed if nothing was written there.
        command: The command that runs; a fit also keeps out tests and predictions.

    Raises:
        OneShotError: if another run holds it, or nothing can be written there.
    """
    made = [p for p in (root, *root.parents) if not p.exists()]
    try:
        with ExitStack() as held:
            for name in _WRITES.get(command, (command,)):
                held.enter_context(_locked(root / f".{name}.lock", wait=False))
            yield
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


@contextmanager
def results_locked(root: Path) -> Iterator[None]:
    """Hold the results of a run for reading, changing and replacing them; others wait.

    Not reentrant: within the block the same process must not ask for it again.

    Args:
        root: Folder of the run; made if there is none.

    Raises:
        OneShotError: if nothing can be written there.
    """
    with _locked(root / LOCK_FILE, wait=True):
        yield


@contextmanager
def _locked(path: Path, wait: bool) -> Iterator[None]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = _taken(path, wait)
    except BlockingIOError as error:
        holder = ""
        with suppress(OSError, UnicodeDecodeError):
            holder = path.read_text(encoding="utf-8")
        raise OneShotError(
            f"{path.parent}: another run is writing there ({holder}); wait for its end, or choose "
            "another folder."
        ) from error
    except OSError as error:
        name_full_disk(error, path)
        raise OneShotError(f"{path.parent}: cannot be written to ({error.strerror}).") from error
    try:
        yield
    finally:
        # Removed while it is held: whoever waits sees that its file is gone, and takes a new one.
        path.unlink(missing_ok=True)
        os.close(handle)


def _taken(path: Path, wait: bool) -> int:
    """Return the handle of the locked file, which says who holds it.

    Raises:
        BlockingIOError: if another process holds it and `wait` is false.
    """
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            # It may have been removed while this process waited.
            if os.path.samestat(os.stat(path), os.fstat(handle)):
                os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
                return handle
        except FileNotFoundError:
            pass
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return handle
            os.close(handle)
            raise
        os.close(handle)
