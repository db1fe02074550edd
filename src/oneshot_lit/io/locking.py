"""One run at a time in a folder, and one process at a time in the results of a run.

The system frees the lock of a process that dies.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from oneshot_lit.errors import OneShotError

LOCK_FILE = ".results.lock"


@contextmanager
def run_locked(root: Path) -> Iterator[None]:
    """Keep other runs from writing in a folder until the block ends.

    In a run of several processes only the first one calls this.

    Args:
        root: Folder of the run; made if there is none, and removed if nothing was written there.

    Raises:
        OneShotError: if another run holds it, or nothing can be written there.
    """
    made = [p for p in (root, *root.parents) if not p.exists()]
    try:
        with _locked(root / ".run.lock", wait=False):
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
    lock = FileLock(path, timeout=-1 if wait else 0, mode=0o666)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise OneShotError(
            f"{path.parent}: another run is writing there; wait for its end, or choose another "
            "folder."
        ) from error
    except OSError as error:
        raise OneShotError(f"{path.parent}: cannot be written to ({error.strerror}).") from error
    try:
        yield
    finally:
        # Removed while it is held: whoever waits sees that its file is gone, and takes a new one.
        path.unlink(missing_ok=True)
        lock.release()
