"""Write files and folders so that nobody ever sees half of one."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from oneshot_lit.errors import OneShotError, causes

# How the system refuses a write: the disk, a quota or a limit on file sizes is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def read_text(path: str | Path) -> str:
    """Return the text of a UTF-8 file, whatever the locale; a byte order mark is left out.

    Raises:
        OneShotError: naming the file, and its line that is not UTF-8.
        OSError: if the file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise OneShotError(f"{path} line {line}: not UTF-8 text; save it as UTF-8.") from error


@contextmanager
def file_written_whole(path: Path, private: bool = False) -> Iterator[BinaryIO]:
    """Yield an open file that takes the place of `path` only if the block ends well.

    Args:
        path: Where it goes; its folder is made if there is none.
        private: Let its owner alone read it, from the first byte on and whatever the umask, such as
            the outputs of a broken model. Otherwise the umask decides.

    Raises:
        OneShotError: if the disk is full; an earlier file stays as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(path)
    try:
        handle = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():
            replace_folder(fresh, path)
        else:
            os.replace(fresh, path)
    except BaseException as error:
        fresh.unlink(missing_ok=True)
        name_full_disk(error, path)
        raise


def _beside(target: Path) -> Path:
    """Return an unused hidden name beside a file or folder."""
    return target.with_name(f".{target.name}.{secrets.token_hex(4)}")


def write_text_atomically(path: Path, text: str, private: bool = False) -> None:
    """Write a UTF-8 text file whole or not at all; see `file_written_whole`."""
    with file_written_whole(path, private) as file:
        file.write(text.encode())


def write_rows_atomically(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write a CSV table whose columns are the first row's keys; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text_atomically(path, text.getvalue())


def write_json_atomically(path: Path, content: Any, private: bool = False) -> None:
    """Write indented JSON; NaN is refused, because JSON has none."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n", private)


@contextmanager
def folder_written_whole(target: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of `target` only if the block ends well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = _beside(target)
    fresh.mkdir()
    # The mode that the umask gives.
    usual = fresh.stat().st_mode & 0o777
    try:
        yield fresh
        # Some writers create private files; whoever may read the folder may read its files.
        for path in fresh.rglob("*"):
            path.chmod(usual if path.is_dir() else usual & 0o666)
        replace_folder(fresh, target)
    except BaseException as error:
        shutil.rmtree(fresh, ignore_errors=True)
        recover(target)
        name_full_disk(error, target)
        raise


def replace_folder(fresh: Path, target: Path) -> None:
    """Put a finished folder in the place of another folder or file, on the same file system.

    A process that is killed between the two renames leaves the old one beside it; see `recover`.
    """
    old = _old(target)
    recover(target)
    remove(old)
    try:
        if target.exists():
            target.rename(old)
        fresh.rename(target)
    except BaseException:
        recover(target)
        raise
    remove(old)


def recover(target: Path) -> None:
    """Put the old folder or file back if `replace_folder` was killed between its two renames."""
    # Another process of the run may do the same at the same time.
    with suppress(FileNotFoundError):
        if not target.exists():
            _old(target).rename(target)


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def name_full_disk(error: BaseException, target: Path) -> None:
    """Raise a one-line error if the disk is full; the system's own names no useful file."""
    if isinstance(error, OneShotError) or not isinstance(error, Exception):
        return
    if any(isinstance(cause, OSError) and cause.errno in _FULL for cause in causes(error)):
        raise OneShotError(
            f"{target}: disk full, or a quota or a limit on file sizes is reached; earlier "
            "checkpoints and outputs are untouched; free some space and run again, a fit with "
            "--ckpt_path last."
        ) from error
