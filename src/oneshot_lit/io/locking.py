"""One run at a time in a folder, and one process at a time in the results of a run."""

from __future__ import annotations

import errno
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import name_full_disk

LOCK_FILE = ".results.lock"
# File systems without locks; writing there is as safe as before there were any.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)


# What a command writes, which no other may write meanwhile. The product of a fit takes the place of
# a model that others test, and theirs are dropped with it.
_WRITES = {
    "fit": ("test", "predict"),
    "edit": ("test", "predict"),
    "test": ("test",),
    "predict": ("predict",),
}


@contextmanager
def run_locked(root: Path, command: str) -> Iterator[None]:
    """Keep the folder of a run from other runs that would write the same, until the block ends.

    The system frees the lock of a process that dies. Of a run of several processes only the first
    asks for it.

    Args:
        root: Folder of the run; made if there is none, and removed if nothing was written there.
        command: What runs; a fit keeps out tests and predictions, too.

    Raises:
        OneShotError: if another run holds it, or nothing can be written there.
    """
    made = [p for p in (root, *root.parents) if not p.exists()]
    held: list[tuple[Path, int | None]] = []
    try:
        for name in _WRITES.get(command, (command,)):
            path = root / f".{name}.lock"
            held.append((path, _taken(root, path)))
        yield
    finally:
        for path, handle in held:
            _free(path, handle)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()


def _taken(root: Path, path: Path) -> int | None:
    """Return the handle of a locked file that says who holds it; None without locks."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = _locked(path, wait=False)
        if handle is not None:
            os.write(handle, f"process {os.getpid()} on {platform.node()}".encode())
        return handle
    except BlockingIOError as error:
        who = ""
        with suppress(OSError, UnicodeDecodeError):
            who = path.read_text(encoding="utf-8")
        raise OneShotError(
            f"{root}: another run is writing there{f' ({who})' if who else ''}; wait for its end, "
            "or choose another folder."
        ) from error
    except OSError as error:
        name_full_disk(error, path)
        raise OneShotError(f"{root}: cannot be written to ({error.strerror}).") from error


def _free(path: Path, handle: int | None) -> None:
    # Removed while it is held: whoever waits sees that its file is gone, and takes a new one.
    path.unlink(missing_ok=True)
    if handle is not None:
        os.close(handle)


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
        _free(path, handle)


def _locked(path: Path, wait: bool = True) -> int | None:
    """Return the handle of the locked file, None where the file system knows no locks.

    Raises:
        BlockingIOError: if another process holds it and this one shall not wait.
    """
    import fcntl

    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
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
