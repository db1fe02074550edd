"""Reading Parquet files row by row, as plain Python values."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.io.compressed import open_bytes, suffixes_of


def read_parquet(
    path: str | Path, bad: Callable[[OneShotError], None]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (row number from 1, columns) of a Parquet file; nested columns are lists and dicts.

    Args:
        path: The file.
        bad: As in `read_jsonl`, for a row that holds text that is not UTF-8.

    Raises:
        OneShotError: naming the file, if it is no Parquet file, damaged, or names a column twice.
    """
    import pyarrow
    from pyarrow.parquet import ParquetFile

    number = 0
    with open_bytes(path) as handle:
        # Columns are looked up from the end of the file, which a compressed one finds slowly.
        file = io.BytesIO(handle.read()) if suffixes_of(path)[1] else handle
        try:
            table = ParquetFile(file)
            names = table.schema_arrow.names
            if twice := next((name for i, name in enumerate(names) if name in names[:i]), None):
                raise OneShotError(f"{path}: two columns are called '{twice}'; rename one.")
            for batch in table.iter_batches():
                for row in _rows(batch):
                    number += 1
                    if row is None:
                        kind = "not UTF-8 text"
                        origin = f"{path} row {number}"
                        bad(RowError(f"{origin}: {kind}; re-encode it.", origin, kind))
                        continue
                    yield number, {name: without_nulls(value) for name, value in row.items()}
        except (pyarrow.ArrowException, OSError) as error:
            said = " ".join(str(error).split())[:200]
            raise OneShotError(
                f"{path}: damaged, or not a Parquet file ({said}); get it again."
            ) from error


def _rows(batch: Any) -> list[dict[str, Any] | None]:
    """Return the rows of a batch; None for those whose bytes are not UTF-8."""
    try:
        return batch.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
        return [row for n in range(len(batch)) for row in _rows(batch.slice(n, 1))]


def without_nulls(value: Any) -> Any:
    """Return a nested value without the keys that hold nothing.

    All objects of a column have the same keys, so a null there stands for a key that the object
    never had, such as a turn's `name`.
    """
    if isinstance(value, dict):
        return {key: without_nulls(each) for key, each in value.items() if each is not None}
    return [without_nulls(each) for each in value] if isinstance(value, list) else value
