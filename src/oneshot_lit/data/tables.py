"""Sources that map named columns to conversations: table files and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.columns import ColumnMap, is_system, resolve_columns
from oneshot_lit.data.sources import (
    BadRows,
    ConversationSource,
    Duplicates,
    chat_row,
    with_system,
)
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.io.compressed import suffixes_of
from oneshot_lit.io.read_files import FORMATS, read_rows
from oneshot_lit.io.read_parquet import without_nulls


class _MappedSource(ConversationSource):
    """Shared part of the sources that map columns to conversations."""

    def __init__(
        self,
        preset: str | None,
        columns: dict[str, str] | None,
        where: dict[str, str | list[str]] | None,
        system: str | None,
        limit: int | None,
        shuffle_seed: int | None,
        *,
        skip: int = 0,
        bad_rows: BadRows = "error",
        duplicates: Duplicates = "keep",
    ) -> None:
        super().__init__(limit, shuffle_seed, skip=skip)
        self.bad_rows, self.duplicates = bad_rows, duplicates
        self.preset, self.columns, self.where, self.system = preset, columns, where, system

    def _convert(self, numbered: Iterator[tuple[int, dict[str, Any]]]) -> list[Conversation]:
        found: list[Conversation] = []
        mapping: ColumnMap | None = None
        header: list[str] = []
        for number, row in numbered:
            origin = f"{self.describe()} row {number}"
            # Each row of a JSONL file may have columns of its own.
            try:
                if mapping is None or list(row) != header:
                    mapping = self._mapping(list(row), origin, mapping is None)
                    header = list(row)
                if mapping.selects(row, self.where, origin):
                    found.append(self._conversation(mapping, row, origin))
                else:
                    self.tally.unselected += 1
            except OneShotError as error:
                # Without any row that fits, the columns are at fault.
                if mapping is None:
                    raise
                self.bad(error)
        if not found and self.where and not self.tally.faulty:
            raise OneShotError(f"{self.describe()}: no row matches where={self.where}; mend it.")
        return found

    def _mapping(self, header: list[str], origin: str, first: bool) -> ColumnMap:
        try:
            return resolve_columns(self.preset, self.columns, header, origin)
        except OneShotError as error:
            if first:
                raise
            raise RowError(str(error), origin, "columns that do not fit") from error

    def _conversation(self, mapping: ColumnMap, row: dict[str, Any], origin: str) -> Conversation:
        if mapping.messages is not None:
            named = {
                f: mapping.get(row, f, origin)
                for f in ("id", "category", "reference")
                if getattr(mapping, f) is not None
            }
            messages = row[mapping.messages]
            if mapping.system is not None:
                row = {k: v for k, v in row.items() if k == mapping.system or not is_system(k)}
            found = chat_row({**row, **named, "messages": messages}, origin)
            if mapping.system is not None:
                found = with_system(found, mapping.get(row, "system", origin), mapping.system)
            own = found.messages[0].role == "system"
            return found if own else with_system(found, self.system, "system")
        prompt, response = mapping.prompt_of(row, origin), mapping.get(row, "response", origin)
        system = mapping.get(row, "system", origin) or self.system
        return conversation_from_pair(
            prompt,
            response or None,
            system=system,
            origin=origin,
            id=mapping.get(row, "id", origin),
            category=mapping.get(row, "category", origin),
            reference=mapping.get(row, "reference", origin),
        )


class TableFile(_MappedSource):
    """A table file whose columns are named by a map: CSV, TSV, JSONL, JSON or Parquet.

    The map is found from the header when that holds the columns of a known public shape, in any
    order; of several shapes the one with the most columns counts (see `columns.find_preset`).
    Otherwise, or to leave out a response, context, system or reference that the shape does not
    read, name a `preset` or give `columns`, such as ``{prompt: Goal, response: Target}``. Both
    together mean the preset with some fields replaced.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (list of objects) or ``.parquet`` file;
            ``.gz``, ``.bz2``, ``.xz`` or ``.zst`` behind it says that it is compressed.
        preset: A known shape, such as ``advbench`` or ``xstest`` (see `columns.PRESETS`).
        columns: Column of each field: prompt, response, context, system, id, category, reference,
            messages.
        where: Keep only rows whose columns equal these values, such as ``{label: safe}``, or one of
            a list of values.
        system: A system prompt for every row that brings none.
        limit: Keep at most this many conversations.
        shuffle_seed: Shuffle with this seed before `skip` and `limit`.
        header: Names for the columns of a CSV or TSV file that has no header line, such as
            ``[prompt]``.
        skip: Leave out the first so many conversations.
        bad_rows: ``error`` stops at the first faulty row; ``skip`` leaves faulty rows out, counts
            them and says so.
        duplicates: ``keep`` counts rows whose turns another row has already; ``drop`` also leaves
            them out, all but the first.
    """

    def __init__(
        self,
        path: str,
        preset: str | None = None,
        columns: dict[str, str] | None = None,
        where: dict[str, str | list[str]] | None = None,
        system: str | None = None,
        limit: int | None = None,
        shuffle_seed: int | None = None,
        *,
        header: list[str] | None = None,
        skip: int = 0,
        bad_rows: BadRows = "error",
        duplicates: Duplicates = "keep",
    ) -> None:
        super().__init__(
            preset,
            columns,
            where,
            system,
            limit,
            shuffle_seed,
            skip=skip,
            bad_rows=bad_rows,
            duplicates=duplicates,
        )
        if header is not None and not header:
            raise OneShotError("TableFile: header is empty; name the columns, such as [prompt].")
        self.path, self.header = path, header

    def describe(self) -> str:
        """Return the path."""
        return self.path

    def rows(self) -> list[Conversation]:
        """Read, map and validate every row."""
        return self._convert(read_rows(self.path, self.bad, self.header))


class HuggingFaceDataset(_MappedSource):
    """A data set of the Hugging Face hub, or a local folder or file.

    Args:
        path: Hub name, a local folder (of `save_to_disk`, or of data files), or a file as for
            `TableFile`.
        name: Configuration of the data set.
        split: Which split.
        preset: A known shape; found from the columns when possible.
        columns: Column of each field, as in `TableFile`.
        where: Keep only rows whose columns equal these values, or one of a list of values.
        system: A system prompt for every row that brings none.
        revision: Git revision on the hub, for repeatable runs.
        limit: Keep at most this many conversations.
        shuffle_seed: Shuffle with this seed before `skip` and `limit`.
        skip: Leave out the first so many conversations.
        bad_rows: ``error`` stops at the first faulty row; ``skip`` leaves faulty rows out, counts
            them and says so.
        duplicates: ``keep`` counts rows whose turns another row has already; ``drop`` also leaves
            them out, all but the first.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        preset: str | None = None,
        columns: dict[str, str] | None = None,
        where: dict[str, str | list[str]] | None = None,
        system: str | None = None,
        revision: str | None = None,
        limit: int | None = None,
        shuffle_seed: int | None = None,
        *,
        skip: int = 0,
        bad_rows: BadRows = "error",
        duplicates: Duplicates = "keep",
    ) -> None:
        super().__init__(
            preset,
            columns,
            where,
            system,
            limit,
            shuffle_seed,
            skip=skip,
            bad_rows=bad_rows,
            duplicates=duplicates,
        )
        self.path, self.name, self.split, self.revision = path, name, split, revision

    def describe(self) -> str:
        """Return the path and split."""
        return f"{self.path}[{self.split}]"

    def rows(self) -> list[Conversation]:
        """Load, map and validate every row."""
        place = Path(self.path).expanduser()
        # A folder may be called so, too; Spark writes such.
        if not place.is_dir() and (place.is_file() or suffixes_of(self.path)[0] in FORMATS):
            if self.split != "train" or self.name or self.revision:
                raise OneShotError(f"{self.path}: a file has no split, name or revision; drop it.")
            return self._convert(read_rows(self.path, self.bad))
        # "squad" and "user/set" are names of the hub; a folder that is there makes them paths.
        looks_local = (
            self.path.startswith((".", "/", "~"))
            or self.path.count("/") > 1
            or ("/" in self.path and place.parent.is_dir())
        )
        if looks_local and not place.exists():
            raise OneShotError(f"{self.path}: folder not found; check the path.")
        table = self._table(place)
        # A folder may remember a format such as torch, which turns its cells into tensors.
        table = table.with_format(None)
        return self._convert(
            (n, {name: without_nulls(value) for name, value in row.items()})
            for n, row in enumerate(table, start=1)
        )

    def _table(self, place: Path) -> Any:
        import datasets

        try:
            if (place / "dataset_dict.json").is_file() or (place / "dataset_info.json").is_file():
                table = datasets.load_from_disk(str(place))
                return table[self.split] if isinstance(table, datasets.DatasetDict) else table
            path = str(place) if place.exists() else self.path
            return datasets.load_dataset(path, self.name, split=self.split, revision=self.revision)
        except Exception as error:  # datasets raises many types, all meaning "cannot be read"
            reason = " ".join(str(error).split())[:200]
            where = "" if place.exists() else "is no file or folder here, and as a name of the hub "
            raise OneShotError(f"{self.describe()}: {where}cannot be loaded ({reason}).") from error
