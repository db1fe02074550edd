"""Reading tables of rows (CSV, TSV, JSONL, JSON, Parquet), compressed or not.

Each row comes with its number, so that every later error can name its file and row.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from oneshot_lit.errors import OneShotError, RowError

FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
# Suffix -> the name that pyarrow has for the compression.
_COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}

Rows = Iterator[tuple[int, dict[str, Any]]]
OnFault = Callable[[RowError], None]


def refuse(error: OneShotError) -> NoReturn:
    """Raise the error of a faulty row."""
    raise error


def read_rows(
    path: str | Path,
    on_fault: OnFault = refuse,
    header: Sequence[str] | None = None,
    default: str | None = None,
) -> Rows:
    """Yield (row number from 1, columns) of a file; its name tells the format.

    Args:
        path: The file.
        on_fault: Gets the error of a faulty row, and raises it or returns to go on without the row.
        header: Names of the columns of a CSV or TSV file without a header line.
        default: Format of a name without a known suffix; None refuses it.

    Raises:
        OneShotError: naming the file if it is missing, damaged or of an unknown type.
    """
    suffix, _ = suffixes_of(path)
    suffix = suffix if suffix in FORMATS or default is None else default
    content = _content(path)
    if suffix not in FORMATS:
        raise OneShotError(
            f"{path}: unknown table type '{suffix}'; use {', '.join(FORMATS)}, as it is or "
            f"compressed ({', '.join(_COMPRESSIONS)})."
        )
    if suffix in (".csv", ".tsv"):
        yield from _read_csv(path, content, on_fault, header, "," if suffix == ".csv" else "\t")
    elif header is not None:
        raise OneShotError(f"{path}: header is for .csv files and .tsv files alone; drop it.")
    elif suffix == ".parquet":
        yield from _read_parquet(path, content)
    elif suffix == ".json" and content.removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"[":
        yield from _read_json_list(path, content, on_fault)
    else:
        yield from _read_json_lines(path, content, on_fault)


def read_jsonl(path: str | Path) -> Rows:
    """Yield (row number from 1, object) of a JSONL file, whatever its name."""
    yield from _read_json_lines(path, _content(path), refuse)


def suffixes_of(path: str | Path) -> tuple[str, str]:
    """Return the format and the compression that a file's name tells, such as .csv and .gz."""
    name = Path(path)
    compression = name.suffix.lower()
    if compression not in _COMPRESSIONS:
        return compression, ""
    return name.with_suffix("").suffix.lower(), compression


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


def _content(path: str | Path) -> bytes:
    """Return what a file holds, decompressed if its name says so."""
    file = require_file(path)
    compression = suffixes_of(file)[1]
    if not compression:
        return file.read_bytes()
    import pyarrow

    try:
        with pyarrow.input_stream(str(file), _COMPRESSIONS[compression]) as stream:
            return bytes(stream.read())
    except (OSError, pyarrow.ArrowException) as error:
        raise OneShotError(
            f"{path}: damaged, or not a {compression} file ({error}); get it again."
        ) from error


def _read_json_lines(path: str | Path, content: bytes, on_fault: OnFault) -> Rows:
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    for number, line in enumerate(lines, start=1):
        origin = f"{path} row {number}"
        try:
            row = _row(json.loads(line.decode()), origin) if line.strip() else None
        except UnicodeDecodeError:
            on_fault(_not_utf8(origin))
        except (ValueError, RecursionError) as error:
            on_fault(RowError(origin, "not JSON", f" ({str(error)[:100]}); fix it."))
        except RowError as error:
            on_fault(error)
        else:
            if row is not None:
                yield number, row


def _read_json_list(path: str | Path, content: bytes, on_fault: OnFault) -> Rows:
    try:
        table = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OneShotError(f"{path} line {line}: not UTF-8 text; re-encode it.") from error
    except (ValueError, RecursionError) as error:
        raise OneShotError(f"{path}: not a JSON file ({str(error)[:100]}); fix it.") from error
    for number, value in enumerate(table, start=1):
        try:
            row = _row(value, f"{path} row {number}")
        except RowError as error:
            on_fault(error)
        else:
            yield number, row


def _row(value: Any, origin: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise RowError(origin, "must be a JSON object", ".")
    if not _is_unicode(value):
        # No tokenizer and no file can take it.
        raise RowError(origin, "holds half a character", " (a lone surrogate escape); fix it.")
    return value


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(origin: str) -> RowError:
    return RowError(origin, "not UTF-8 text", "; re-encode it.")


def _read_csv(
    path: str | Path,
    content: bytes,
    on_fault: OnFault,
    header: Sequence[str] | None,
    delimiter: str,
) -> Rows:
    csv.field_size_limit(2**31 - 1)
    # Bytes that are not UTF-8 become lone surrogates, so that their row can be named.
    text = io.StringIO(content.decode("utf-8-sig", errors="surrogateescape"), newline="")
    names = None if header is None else list(header)
    number = 0
    try:
        for cells in csv.reader(text, strict=True, delimiter=delimiter):
            if not cells:
                continue
            if names is None:
                if not _is_unicode(cells):
                    raise _not_utf8(f"{path} line 1")
                names = _distinct(cells, path)
                continue
            number += 1
            origin = f"{path} row {number}"
            if len(cells) != len(names):
                reason = "has another number of fields than the header"
                advice = f" ({len(names)}); fix its quotes or separators."
                on_fault(RowError(origin, reason, advice))
            elif not _is_unicode(cells):
                on_fault(_not_utf8(origin))
            else:
                yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        kind = "CSV" if delimiter == "," else "TSV"
        raise OneShotError(f"{path} row {number + 1}: not {kind} ({error}); fix it.") from error


def _distinct(names: list[str], path: str | Path) -> list[str]:
    # Columns without a name, such as trailing commas make, cannot be used anyway.
    twice = [name for i, name in enumerate(names) if name.strip() and name in names[:i]]
    if twice:
        raise OneShotError(
            f"{path}: the header has two columns '{in_short(twice[:1])}'; rename or remove one."
        )
    return names


def _read_parquet(path: str | Path, content: bytes) -> Rows:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        table = ParquetFile(io.BytesIO(content))
        _distinct(table.schema_arrow.names, path)
        rows = (row for batch in table.iter_batches() for row in batch.to_pylist())
        for number, row in enumerate(rows, start=1):
            yield number, without_nulls(row)
    except UnicodeDecodeError as error:
        raise OneShotError(f"{path}: holds text that is not UTF-8; re-encode it.") from error
    except (pyarrow.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise OneShotError(
            f"{path}: damaged, or not a Parquet file ({reason}); get it again."
        ) from error


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without the keys of nested objects that hold nothing.

    All objects of a column have the same keys, so a null there stands for a key that the object
    never had, such as a turn's `name`.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def in_short(columns: Iterable[str]) -> str:
    """Return column names for an error: one line, and short even if one is a whole prompt."""
    names = (" ".join(str(column).split()) for column in columns)
    return ", ".join(n if len(n) <= 60 else f"{n[:57]}..." for n in names if n)
