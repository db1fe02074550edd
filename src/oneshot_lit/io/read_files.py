"""Reading tables of rows (CSV, TSV, JSONL, JSON, Parquet), also compressed with gzip.

Each row comes with its number, so that every later error can name its file and row.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from oneshot_lit.errors import OneShotError, RowError

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")

Rows = Iterator[tuple[int, dict[str, Any]]]
OnFault = Callable[[RowError], None]


def refuse(error: OneShotError) -> NoReturn:
    """Raise the error of a faulty row."""
    raise error


def read_rows(
    path: str | Path, on_fault: OnFault = refuse, header: Sequence[str] | None = None
) -> Rows:
    """Yield (row number from 1, columns) of a file; its name tells the format.

    A ``.json`` file holds a list of objects, or an object a line.

    Args:
        path: The file.
        on_fault: Gets the error of a faulty row, and raises it or returns to go on without the row.
        header: Names of the columns of a CSV or TSV file without a header line.

    Raises:
        OneShotError: naming the file if it is missing, damaged or of an unknown type.
    """
    file = require_file(path)
    packed = file.suffix.lower() == ".gz"
    suffix = (file.with_suffix("") if packed else file).suffix.lower()
    if suffix not in FORMATS:
        raise OneShotError(
            f"{path}: unknown table type '{suffix}'; use {', '.join(FORMATS)}, as it is or with "
            ".gz behind it."
        )
    if header is not None and suffix not in (".csv", ".tsv"):
        raise OneShotError(f"{path}: header is for .csv files and .tsv files alone; drop it.")
    try:
        with gzip.open(file) if packed else file.open("rb") as handle:
            if suffix in (".csv", ".tsv"):
                yield from _read_csv(path, handle, on_fault, header, suffix)
            elif suffix == ".parquet":
                yield from _read_parquet(path, handle)
            elif suffix == ".json" and handle.peek(64).lstrip(b"\xef\xbb\xbf \r\n\t")[:1] == b"[":
                yield from _json_rows(path, _listed(path, handle), on_fault)
            else:
                yield from _json_rows(path, handle, on_fault)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise OneShotError(f"{path}: damaged, or no .gz file ({error}); get it again.") from error


def read_jsonl(path: str | Path) -> Rows:
    """Yield (row number from 1, object) of a JSONL file, whatever its name."""
    with require_file(path).open("rb") as file:
        yield from _json_rows(path, file, refuse)


def require_file(path: str | Path) -> Path:
    """Return the path of an existing file, or raise an error that names its neighbours."""
    file = Path(path).expanduser()
    if file.is_dir():
        raise OneShotError(f"{path}: is a folder; give a file.")
    if not file.is_file():
        near = sorted(p.name for p in file.parent.glob(f"*{file.suffix}"))[:3]
        hint = f" (its folder holds {', '.join(near)})" if near else ""
        raise OneShotError(f"{path}: file not found{hint}; check the path.")
    return file


def _listed(path: str | Path, file: Any) -> list[Any]:
    try:
        return list(json.loads(file.read().decode("utf-8-sig")))
    except ValueError as error:
        raise OneShotError(f"{path}: not a JSON file ({str(error)[:100]}); fix it.") from error


def _json_rows(path: str | Path, values: Iterable[Any], on_fault: OnFault) -> Rows:
    """Yield the objects of a list, or of lines of bytes."""
    for number, value in enumerate(values, start=1):
        origin = f"{path} row {number}"
        try:
            if isinstance(value, bytes):
                text = value.decode("utf-8-sig").strip()
                if not text:
                    continue
                value = json.loads(text)
            if not isinstance(value, dict):
                raise RowError(origin, "must be a JSON object")
            if not _is_unicode(value):
                # No tokenizer and no file can take it.
                raise RowError(origin, "holds half a character", " (a lone surrogate escape).")
        except UnicodeDecodeError:
            on_fault(RowError(origin, "not UTF-8 text", "; re-encode it."))
        except ValueError as error:
            on_fault(RowError(origin, "not JSON", f" ({str(error)[:100]}); fix it."))
        except RowError as error:
            on_fault(error)
        else:
            yield number, value


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_csv(
    path: str | Path, file: Any, on_fault: OnFault, header: Sequence[str] | None, suffix: str
) -> Rows:
    csv.field_size_limit(2**31 - 1)
    # Bytes that are not UTF-8 become lone surrogates, so that their row can be named.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    number = 0
    try:
        delimiter = "," if suffix == ".csv" else "\t"
        lines = (cells for cells in csv.reader(text, strict=True, delimiter=delimiter) if cells)
        names = list(header) if header is not None else next(lines, [])
        if not _is_unicode(names):
            raise RowError(f"{path} line 1", "not UTF-8 text", "; re-encode it.")
        # Columns without a name, such as trailing commas make, cannot be used anyway.
        twice = [name for i, name in enumerate(names) if name.strip() and name in names[:i]]
        if twice:
            raise OneShotError(
                f"{path}: the header has two columns '{in_short(twice[:1])}'; rename or remove one."
            )
        for number, cells in enumerate(lines, start=1):
            origin = f"{path} row {number}"
            if len(cells) != len(names):
                reason = "has another number of fields than the header"
                advice = f" ({len(names)}); fix its quotes or delimiters."
                on_fault(RowError(origin, reason, advice))
            elif not _is_unicode(cells):
                on_fault(RowError(origin, "not UTF-8 text", "; re-encode it."))
            else:
                yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        raise OneShotError(f"{path} row {number + 1}: cannot be read ({error}); fix it.") from error


def _read_parquet(path: str | Path, file: Any) -> Rows:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        rows = (row for batch in ParquetFile(file).iter_batches() for row in batch.to_pylist())
        yield from enumerate(rows, start=1)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OneShotError(
            f"{path}: damaged, or not a Parquet file ({reason}); get it again."
        ) from error


def in_short(columns: Iterable[str]) -> str:
    """Return column names for an error: one line, and short even if one is a whole prompt."""
    names = (" ".join(str(column).split()) for column in columns)
    return ", ".join(n if len(n) <= 60 else f"{n[:57]}..." for n in names if n)
