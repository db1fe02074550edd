"""Sources that map named columns to conversations: table files and Hugging Face data sets."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.columns import conversation_of, resolve_columns, selected
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.io.read_files import read_rows

BadRows = Literal["error", "skip"]
Duplicates = Literal["keep", "drop"]


class FileSource(ConversationSource):
    """Base of the sources that map the columns of rows; subclasses implement `records`.

    Args:
        preset: A known shape, such as ``advbench`` or ``xstest`` (see `columns.PRESETS`); if not
            given, recognised by the columns where possible.
        columns: Column of each field: prompt, response, context (put before the prompt), input
            (put behind it), system, id, category, reference, messages.
        where: Keep only rows with these values in these columns, such as ``{label: safe}``; a list
            allows any of its values.
        system: A system prompt for every row that has none.
        bad_rows: ``error`` stops at the first faulty row; ``skip`` leaves faulty rows out, counts
            them and says so.
        duplicates: ``drop`` leaves out rows with the same turns as an earlier row, and counts
            them.
        limit: Keep at most this many conversations.
        shuffle_seed: Shuffle with this seed before `skip` and `limit`.
        skip: Leave out this many conversations at the start.
    """

    def __init__(
        self,
        preset: str | None = None,
        columns: dict[str, str] | None = None,
        where: dict[str, str | list[str]] | None = None,
        system: str | None = None,
        *,
        bad_rows: BadRows = "error",
        duplicates: Duplicates = "keep",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.preset, self.columns, self.where, self.system = preset, columns, where, system
        self.bad_rows, self.duplicates = bad_rows, duplicates

    @property
    def skips_bad_rows(self) -> bool:
        """As `bad_rows` says."""
        return self.bad_rows == "skip"

    def on_fault(self, error: RowError) -> None:
        """Raise the error of a row, or count the row, as `bad_rows` says."""
        if not self.skips_bad_rows:
            raise error
        self.left_out.count(error.origin, error.reason)

    def records(self) -> Iterable[tuple[int, dict[str, Any]]]:
        """Return (row number from 1, columns) of every row; hand faulty rows to `on_fault`."""
        raise NotImplementedError

    def rows(self) -> list[Conversation]:
        """Map every row, and leave out faulty ones and duplicates if asked to."""
        conversations: dict[Any, Conversation] = {}
        fields: dict[str, str] | None = None
        header: list[str] = []
        for number, row in self.records():
            origin = f"{self.describe()} row {number}"
            try:
                # Each row of a JSONL file may have different columns.
                if fields is None or list(row) != header:
                    fields = resolve_columns(self.preset, self.columns, list(row), origin)
                    header = list(row)
                if not selected(row, self.where, origin):
                    continue
                conversation = conversation_of(fields, row, origin, self.system)
            except RowError as error:
                # Without any row that fits, the columns are at fault.
                if fields is None:
                    raise
                self.on_fault(error)
                continue
            key = conversation.messages if self.duplicates == "drop" else number
            if conversations.setdefault(key, conversation) is not conversation:
                self.left_out.count(origin, "duplicate")
        if not conversations and self.where and not self.left_out:
            raise OneShotError(f"{self.describe()}: no row matches where={self.where}; change it.")
        return list(conversations.values())


class TableFile(FileSource):
    """A table file with a map of its columns: CSV, TSV, JSONL, JSON or Parquet.

    If the header has the columns of a known public shape, in any order, the map follows from it; of
    several shapes the one with the most columns wins (see `columns.find_preset`). Otherwise, or to
    leave out a response, context, system or reference that the shape does not read, name a `preset`
    or give `columns`, such as ``{prompt: Goal, response: Target}``. With both, `columns` replaces
    fields of the preset.

    Args:
        path: A ``.csv``, ``.tsv``, ``.jsonl``, ``.json`` or ``.parquet`` file; with ``.gz`` behind
            the name it is read as compressed.
        header: Names for the columns of a CSV or TSV file that has no header line, such as
            ``[prompt]``.
    """

    def __init__(self, path: str, *, header: list[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path, self.header = path, header

    def describe(self) -> str:
        """Return the path."""
        return self.path

    def records(self) -> Iterable[tuple[int, dict[str, Any]]]:
        """Read the file."""
        return read_rows(self.path, self.on_fault, self.header)


class ChatJsonl(TableFile):
    """Rows of ``{"messages": [{"role", "content"}, ...]}``, the format of fine-tuning APIs.

    Optional keys of a row: ``id``, ``category``, ``reference`` (the expected answer), ``system``
    (the system turn of a row that has none). An answer with ``"weight": 0`` or ``"train": false``
    is context only, and carries no loss. Rows with tool calls are refused.

    Args:
        path: The JSONL file, or another file as for `TableFile` with these columns.
    """

    def __init__(self, path: str, *, preset: str | None = "chat", **kwargs: Any) -> None:
        super().__init__(path, preset=preset, **kwargs)


class HuggingFaceDataset(FileSource):
    """A data set of the Hugging Face hub, or a local folder.

    Args:
        path: Hub name, or a local folder (of `save_to_disk`, or of data files).
        name: Configuration of the data set.
        split: Which split.
        revision: Git revision on the hub, for repeatable runs.
        licence: Licence of the set, which is said before it is fetched.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        licence: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path, self.name, self.split, self.revision = path, name, split, revision
        self.licence = licence

    @property
    def of_hub(self) -> bool:
        """Whether the path is a name of the hub, and nothing on this machine."""
        local = self.path.startswith((".", "/", "~"))
        return not local and not Path(self.path).expanduser().exists()

    def describe(self) -> str:
        """Return the path and split."""
        return f"{self.path}[{self.split}]"

    def records(self) -> Iterable[tuple[int, dict[str, Any]]]:
        """Load the rows of the split."""
        import datasets

        place = Path(self.path).expanduser()
        if place.is_file():
            raise OneShotError(f"{self.path}: is a file; give it to TableFile.")
        if self.path.startswith((".", "/", "~")) and not place.exists():
            raise OneShotError(f"{self.path}: folder not found; check the path.")
        try:
            if any((place / f"dataset_{kind}.json").is_file() for kind in ("dict", "info")):
                table = datasets.load_from_disk(str(place))
                table = table[self.split] if isinstance(table, datasets.DatasetDict) else table
            else:
                path = str(place) if place.exists() else self.path
                table = datasets.load_dataset(
                    path, self.name, split=self.split, revision=self.revision
                )
        except Exception as error:  # datasets raises many types, all meaning "cannot be read"
            reason = " ".join(str(error).split())[:200]
            where = "" if place.exists() else "is no folder here, and as a name of the hub "
            raise OneShotError(f"{self.describe()}: {where}cannot be loaded ({reason}).") from error
        # A saved data set may have a format such as torch, which would turn cells into tensors.
        return enumerate(table.with_format(None), start=1)
