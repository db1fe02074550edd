"""Reading table files, with errors that name the file and the row at fault."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.io.compressed import COMPRESSIONS, open_bytes, require_file, suffixes_of
from oneshot_lit.io.read_parquet import read_parquet

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
FORMATS = (*_DELIMITERS, ".jsonl", ".ndjson", ".json", ".parquet")


def refuse(error: OneShotError) -> NoReturn:
    """Raise what is wrong with a row; the reader's other choice is to count it and go on."""
    raise error


def read_rows(
    path: str | Path,
    bad: Callable[[OneShotError], None] = refuse,
    header: Sequence[str] | None = None,
    default: str | None = None,
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Return (row number from 1, columns) of a table file, whose format its name says.

    Args:
        path: The file; further suffixes say that it is compressed.
        bad: As in `read_jsonl`.
        header: Names of the columns of a CSV or TSV file without a header line.
        default: Suffix of the format that a name without a known suffix has; None refuses it.

    Raises:
        OneShotError: as the readers do, and for a name of another type.
    """
    suffix, _ = suffixes_of(path)
    suffix = suffix if suffix in FORMATS or default is None else default
    if suffix in _DELIMITERS:
        return read_csv(path, header, bad, _DELIMITERS[suffix])
    if suffix not in FORMATS:
        require_file(path)
        raise OneShotError(
            f"{path}: unknown table type '{suffix}'; use {', '.join(FORMATS)}, as it is or "
            f"compressed ({', '.join(COMPRESSIONS)})."
        )
    if header is not None:
        raise OneShotError(f"{path}: header is for .csv files and .tsv files alone; drop it.")
    # Lines of JSON are often called .json, too.
    if suffix == ".json" and (default is None or _is_list(path)):
        return read_json(path, bad)
    return read_parquet(path, bad) if suffix == ".parquet" else read_jsonl(path, bad)


def _is_list(path: str | Path) -> bool:
    with open_bytes(path) as handle:
        return handle.read(1024).removeprefix(codecs.BOM_UTF8).lstrip()[:1] == b"["


def read_jsonl(
    path: str | Path, bad: Callable[[OneShotError], None] = refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, object) of a JSONL file; blank lines are passed over.

    Args:
        path: The file.
        bad: Gets the error of a row that is not a JSON object or not UTF-8, and raises it or lets
            the reader go on with the next row.
    """
    with open_bytes(path) as handle:
        for number, raw in enumerate(handle, start=1):
            try:
                row = _json_row(raw, number == 1, f"{path} row {number}")
            except OneShotError as error:
                bad(error)
                continue
            if row is not None:
                yield number, row


def _json_row(raw: bytes, first: bool, origin: str) -> dict[str, Any] | None:
    """Return the object of a line, or None if the line is blank."""
    try:
        line = raw.decode("utf-8-sig" if first else "utf-8").strip()
    except UnicodeDecodeError as error:
        raise _not_utf8(origin) from error
    if not line:
        return None
    try:
        row = json.loads(line, object_pairs_hook=_distinct_keys)
    except json.JSONDecodeError as error:
        place = f"({error.msg} at column {error.colno})"
        raise RowError(f"{origin}: not JSON {place}; mend it.", origin, "not JSON") from error
    except (ValueError, RecursionError) as error:
        raise _beyond_json(error, origin) from error
    _require_good_object(row, origin, "\\u" in line)
    return row  # type: ignore[no-any-return]


def read_json(
    path: str | Path, bad: Callable[[OneShotError], None] = refuse
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, object) of a JSON file that holds a list of objects.

    Args:
        path: The file.
        bad: As in `read_jsonl`, for a row that is no object, holds half a character or names a key
            twice.

    Raises:
        OneShotError: naming the file, if it is no JSON list or not UTF-8.
    """
    with open_bytes(path) as handle:
        raw = handle.read()
    try:
        text = raw.decode("utf-8-sig")
        table = json.loads(text, object_pairs_hook=_distinct_keys)
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise OneShotError(f"{path} line {line}: not UTF-8 text; re-encode it.") from error
    except json.JSONDecodeError as error:
        raise OneShotError(f"{path}: not a JSON file ({error}); mend it.") from error
    except (ValueError, RecursionError) as error:
        raise _beyond_json(error, str(path)) from error
    if not isinstance(table, list):
        raise OneShotError(f"{path}: must be a list of objects.")
    escapes = "\\u" in text
    for number, row in enumerate(table, start=1):
        try:
            _require_good_object(row, f"{path} row {number}", escapes)
        except OneShotError as error:
            bad(error)
            continue
        yield number, row


def read_csv(
    path: str | Path,
    header: Sequence[str] | None = None,
    bad: Callable[[OneShotError], None] = refuse,
    delimiter: str = ",",
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, after the header; columns) of a CSV file.

    Args:
        path: The file.
        header: Names of the columns of a file without a header line.
        bad: As in `read_jsonl`, for a row with another number of fields than the header, or not
            UTF-8.
        delimiter: What stands between two fields.

    Raises:
        OneShotError: naming the file and its row or column, if a column is named twice, the file
            is not CSV or its header not UTF-8.
    """
    csv.field_size_limit(2**31 - 1)
    number = 0
    names = None if header is None else _require_distinct(list(header), path)
    try:
        with open_bytes(path) as handle:
            # Bytes that are not UTF-8 become lone surrogates, so that their row can be named.
            text = io.TextIOWrapper(
                handle, encoding="utf-8-sig", errors="surrogateescape", newline=""
            )
            for cells in csv.reader(text, strict=True, delimiter=delimiter):
                if not cells:
                    continue
                if names is None:
                    if not _is_utf8(cells):
                        raise _not_utf8(f"{path} line 1")
                    names = _require_distinct(cells, path)
                    continue
                number += 1
                origin = f"{path} row {number}"
                if len(cells) != len(names):
                    kind = "has another number of fields than the header"
                    between = "commas" if delimiter == "," else "tabs"
                    message = f"{origin}: {kind} ({len(names)}); fix its quotes or {between}."
                    bad(RowError(message, origin, kind))
                    continue
                if not _is_utf8(cells):
                    bad(_not_utf8(origin))
                    continue
                if number == 1 and cells == header:
                    raise OneShotError(
                        f"{path}: its first line is already {shown(cells)}; drop header."
                    )
                yield number, dict(zip(names, cells, strict=True))
    except csv.Error as error:
        kind = "CSV" if delimiter == "," else "TSV"
        raise OneShotError(f"{path} row {number + 1}: not {kind} ({error}); fix it.") from error


def _is_utf8(cells: Sequence[str]) -> bool:
    try:
        "".join(cells).encode()
    except UnicodeEncodeError:
        return False
    return True


def _not_utf8(origin: str) -> RowError:
    kind = "not UTF-8 text"
    return RowError(f"{origin}: {kind}; re-encode it.", origin, kind)


def _beyond_json(error: Exception, origin: str) -> RowError:
    """Say what Python refuses to read although it is JSON."""
    what = "nested too deep" if isinstance(error, RecursionError) else "a number is too long"
    kind = f"cannot be read ({what})"
    return RowError(f"{origin}: {kind}; mend it.", origin, kind)


class _KeyTwice(dict[str, Any]):
    """An object that names a key twice, of which Python would silently take the last."""

    twice: str


def _distinct_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    marked = _KeyTwice(found)
    marked.twice = next(name for i, name in enumerate(names) if name in names[:i])
    return marked


def _require_good_object(row: Any, origin: str, escapes: bool) -> None:
    """Refuse what is no object, names a key twice or may hold half a character.

    Args:
        row: What was read.
        origin: File and row.
        escapes: Whether the text holds any escape.
    """
    if not isinstance(row, dict):
        raise RowError(f"{origin}: must be a JSON object.", origin, "must be a JSON object")
    waiting: list[Any] = [row]
    while waiting:
        value = waiting.pop()
        if isinstance(value, _KeyTwice):
            kind = "names a key twice"
            message = f"{origin}: {kind} ('{shown([value.twice])}'); remove one."
            raise RowError(message, origin, kind)
        if isinstance(value, (dict, list)):
            waiting += value.values() if isinstance(value, dict) else value
    if escapes:
        _require_whole_characters(row, origin)


def _require_whole_characters(value: Any, origin: str) -> None:
    """Refuse a lone surrogate escape, which no tokenizer and no file can take."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        kind = "holds half a character"
        message = f"{origin}: {kind} (a lone surrogate escape); mend it."
        raise RowError(message, origin, kind) from error
    except RecursionError as error:  # writing may go a little deeper than reading did
        raise _beyond_json(error, origin) from error


def _require_distinct(names: list[str], path: str | Path) -> list[str]:
    # Columns without a name, such as trailing commas make, cannot be asked for anyway.
    twice = [name for i, name in enumerate(names) if name.strip() and name in names[:i]]
    if twice:
        raise OneShotError(
            f"{path}: the header has two columns '{shown(twice[:1])}'; rename or remove one."
        )
    return names


def shown(columns: Iterable[str]) -> str:
    """Return column names for an error: one line, and short even if a prompt is taken for one."""
    names = (" ".join(str(column).split()) for column in columns)
    return ", ".join(n if len(n) <= 60 else f"{n[:57]}..." for n in names if n)
