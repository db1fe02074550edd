"""Opening files that may be compressed, by the ends of their names."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from oneshot_lit.errors import OneShotError


def _open_zstandard(file: Path) -> io.BufferedReader:
    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))


_OPEN: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _open_zstandard,
}
COMPRESSIONS = tuple(_OPEN)


def suffixes_of(path: str | Path) -> tuple[str, str]:
    """Return what a file's name says of its format and its compression, such as .csv and .gz."""
    name = Path(path)
    packed = name.suffix.lower()
    if packed not in _OPEN:
        return packed, ""
    return name.with_suffix("").suffix.lower(), packed


def require_file(path: str | Path) -> Path:
    """Return the path of an existing, readable file, or raise a one-line error."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise OneShotError(f"{path}: is a folder; give a file.")
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob(f"*{file.suffix}"))[:3]
        hint = f" (its folder holds {', '.join(near)})" if near else ""
        raise OneShotError(f"{path}: file not found{hint}; check the path.")
    return file


@contextmanager
def open_bytes(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for reading, decompressed if its name says so.

    Raises:
        OneShotError: if the file is not there, or is not what its name says, or damaged.
    """
    file = require_file(path)
    packed = suffixes_of(file)[1]
    try:
        with _OPEN[packed](file) if packed else file.open("rb") as handle:
            yield cast(BinaryIO, handle)
    except (EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        # What the file system refuses has a number.
        if not packed or getattr(error, "errno", None) is not None:
            raise
        raise OneShotError(
            f"{path}: damaged, or not a {packed} file ({error}); get it again."
        ) from error
