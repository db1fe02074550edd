"""Sources that map named columns to conversations: table files and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.columns import ColumnMap, is_system, resolve_columns
from oneshot_lit.data.sources import FileSource, chat_row, with_system
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.read_files import FORMATS, read_rows, suffixes_of, without_nulls


class MappedSource(FileSource):
    """Base of the sources that map columns to conversations.

    Args:
        preset: A known shape, such as ``advbench`` or ``xstest`` (see `columns.PRESETS`); if not
            given, recognised by the columns where possible.
        columns: Column of each field: prompt, response, context, system, id, category, reference,
            messages.
        where: Keep only rows with these values in these columns, such as ``{label: safe}``; a list
            allows any of its values.
        system: A system prompt for every row that has none.
    """

    def __init__(
        self,
        preset: str | None = None,
        columns: dict[str, str] | None = None,
        where: dict[str, str | list[str]] | None = None,
        system: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.preset, self.columns, self.where, self.system = preset, columns, where, system

    def _convert(self, numbered: Iterator[tuple[int, dict[str, Any]]]) -> list[Conversation]:
        conversations: list[Conversation] = []
        mapping: ColumnMap | None = None
        header: list[str] = []
        for number, row in numbered:
            origin = f"{self.describe()} row {number}"
            # Each row of a JSONL file may have different columns.
            try:
                if mapping is None or list(row) != header:
                    mapping = resolve_columns(self.preset, self.columns, list(row), origin)
                    header = list(row)
                if mapping.selects(row, self.where, origin):
                    conversations.append(self._conversation(mapping, row, origin))
            except OneShotError as error:
                # Without any row that fits, the columns are at fault.
                if mapping is None:
                    raise
                self.on_fault(error, origin)
        if not conversations and self.where and not self.left_out:
            raise OneShotError(f"{self.describe()}: no row matches where={self.where}; change it.")
        return conversations

    def _conversation(self, mapping: ColumnMap, row: dict[str, Any], origin: str) -> Conversation:
        if mapping.messages is not None:
            return self._chat(mapping, row, origin)
        return conversation_from_pair(
            mapping.prompt_of(row, origin),
            mapping.get(row, "response", origin),
            system=mapping.get(row, "system", origin) or self.system,
            origin=origin,
            id=mapping.get(row, "id", origin),
            category=mapping.get(row, "category", origin),
            reference=mapping.get(row, "reference", origin),
        )

    def _chat(self, mapping: ColumnMap, row: dict[str, Any], origin: str) -> Conversation:
        named = {
            field: mapping.get(row, field, origin)
            for field in ("id", "category", "reference")
            if getattr(mapping, field) is not None
        }
        messages = row[mapping.messages or ""]
        if mapping.system is not None:
            row = {k: v for k, v in row.items() if k == mapping.system or not is_system(k)}
        conversation = chat_row({**row, **named, "messages": messages}, origin)
        if mapping.system is not None:
            system = mapping.get(row, "system", origin)
            conversation = with_system(conversation, system, mapping.system)
        if conversation.messages[0].role == "system":
            return conversation
        return with_system(conversation, self.system, "system")


class TableFile(MappedSource):
    """A table file with a map of its columns: CSV, TSV, JSONL, JSON or Parquet.

    If the header has the columns of a known public shape, in any order, the map follows from it; of
    several shapes the one with the most columns wins (see `columns.find_preset`). Otherwise, or to
    leave out a response, context, system or reference that the shape does not read, name a `preset`
    or give `columns`, such as ``{prompt: Goal, response: Target}``. With both, `columns` replaces
    fields of the preset.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` (list of objects) or ``.parquet`` file;
            a name that ends in ``.gz``, ``.bz2`` or ``.zst`` is read as compressed.
        header: Names for the columns of a CSV or TSV file that has no header line, such as
            ``[prompt]``.
    """

    def __init__(self, path: str, *, header: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if header is not None and not header:
            raise OneShotError("TableFile: header is empty; name the columns, such as [prompt].")
        self.path, self.header = path, header

    def describe(self) -> str:
        """Return the path."""
        return self.path

    def read(self) -> list[Conversation]:
        """Read, map and validate every row."""
        return self._convert(read_rows(self.path, self.on_fault, self.header))


class HuggingFaceDataset(MappedSource):
    """A data set of the Hugging Face hub, or a local folder or file.

    Args:
        path: Hub name, a local folder (of `save_to_disk`, or of data files), or a file as for
            `TableFile`.
        name: Configuration of the data set.
        split: Which split.
        revision: Git revision on the hub, for repeatable runs.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.name, self.split, self.revision = path, name, split, revision

    def describe(self) -> str:
        """Return the path and split."""
        return f"{self.path}[{self.split}]"

    def read(self) -> list[Conversation]:
        """Load, map and validate every row."""
        place = Path(self.path).expanduser()
        # Spark writes folders with such names.
        if not place.is_dir() and (place.is_file() or suffixes_of(self.path)[0] in FORMATS):
            if self.split != "train" or self.name or self.revision:
                raise OneShotError(f"{self.path}: a file has no split, name or revision; drop it.")
            return self._convert(read_rows(self.path, self.on_fault))
        # "squad" and "user/set" are names on the hub, unless there is such a folder.
        looks_local = (
            self.path.startswith((".", "/", "~"))
            or self.path.count("/") > 1
            or ("/" in self.path and place.parent.is_dir())
        )
        if looks_local and not place.exists():
            raise OneShotError(f"{self.path}: folder not found; check the path.")
        # A saved data set may have a format such as torch, which would turn cells into tensors.
        table = self._table(place).with_format(None)
        return self._convert((n, without_nulls(row)) for n, row in enumerate(table, start=1))

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
