"""Conversation sources: their base, chat JSONL, the micro-world, inline rows and mixtures.

Each source is a small class chosen in YAML by `class_path`; `load()` returns `Conversation`s. Their
`origin` names file and row, so that every later error can point at the row to fix.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from oneshot_lit.conversation import Conversation, Message, parse_messages
from oneshot_lit.data.columns import cell_text, is_system
from oneshot_lit.data.left_out import LeftOut
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.io.read_files import in_short, read_rows

BadRows = Literal["error", "skip"]
Duplicates = Literal["keep", "drop"]


class ConversationSource:
    """Base of all sources; subclass it and implement `rows` to add your own.

    Args:
        limit: Keep at most this many conversations (after shuffling and `skip`, if any).
        shuffle_seed: Shuffle with this seed before `skip` and `limit`; None keeps the source's
            order.
        skip: Leave out this many conversations at the start. One file gives two disjoint parts with
            `limit` 50 for the one, `skip` 50 for the other, and the same `shuffle_seed`.
    """

    def __init__(
        self, limit: int | None = None, shuffle_seed: int | None = None, *, skip: int = 0
    ) -> None:
        if limit is not None and limit < 1:
            raise OneShotError(f"{type(self).__name__}: limit must be at least 1, not {limit}.")
        if skip < 0:
            raise OneShotError(f"{type(self).__name__}: skip must be at least 0, not {skip}.")
        self.limit = limit
        self.shuffle_seed = shuffle_seed
        self.skip = skip
        self.left_out = LeftOut()

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The sources that this one is made of."""
        return ()

    @property
    def skips_bad_rows(self) -> bool:
        """Whether faulty rows are left out, even if the fault shows only when they are used."""
        return bool(self.parts) and all(part.skips_bad_rows for part in self.parts)

    def all_left_out(self) -> LeftOut:
        """Return what this source and its parts have left out, after `load`."""
        total = LeftOut()
        for part in self.parts:
            total.add(part.all_left_out())
        total.add(self.left_out)
        return total

    def rows(self) -> list[Conversation]:
        """Return every conversation of the source, in its own order."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return a short name of the source for errors and provenance."""
        return type(self).__name__

    def load(self) -> list[Conversation]:
        """Return the conversations after shuffling, `skip` and `limit`.

        Raises:
            OneShotError: if the source is missing, malformed or empty, or `skip` leaves nothing.
        """
        self.left_out = LeftOut()
        rows = self.rows()
        if not rows:
            why = f" ({self.left_out})" if self.left_out else ""
            raise OneShotError(
                f"{self.describe()}: holds no conversation{why}; give a non-empty source."
            )
        if self.shuffle_seed is not None:
            rows = list(rows)
            random.Random(self.shuffle_seed).shuffle(rows)
        kept = rows[self.skip :]
        if not kept:
            raise OneShotError(
                f"{self.describe()}: skip={self.skip} leaves none of its {len(rows)} "
                "conversations; lower it."
            )
        return kept[: self.limit]


class FileSource(ConversationSource):
    """Base of the sources with rows that may be faulty; subclasses implement `read`.

    Args:
        bad_rows: ``error`` stops at the first faulty row; ``skip`` leaves faulty rows out, counts
            them and says so.
        duplicates: ``drop`` leaves out rows with the same turns as an earlier row, and counts
            them.
        limit: Keep at most this many conversations.
        shuffle_seed: Shuffle with this seed before `skip` and `limit`.
        skip: Leave out this many conversations at the start.
    """

    def __init__(
        self, *, bad_rows: BadRows = "error", duplicates: Duplicates = "keep", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.bad_rows, self.duplicates = bad_rows, duplicates

    @property
    def skips_bad_rows(self) -> bool:
        """As `bad_rows` says."""
        return self.bad_rows == "skip"

    def on_fault(self, error: OneShotError, origin: str | None = None) -> None:
        """Raise the error of a row, or count the row, as `bad_rows` says."""
        if self.bad_rows == "error":
            raise error
        self.left_out.count_error(error, getattr(error, "origin", origin or self.describe()))

    def read(self) -> list[Conversation]:
        """Return every conversation of the file; hand faulty rows to `on_fault`."""
        raise NotImplementedError

    def rows(self) -> list[Conversation]:
        """Read the file, and leave out duplicates if asked to."""
        rows = self.read()
        if self.duplicates == "keep":
            return rows
        first: dict[Any, Conversation] = {}
        for row in rows:
            if first.setdefault(row.messages, row) is not row:
                self.left_out.count(row.origin, "duplicate")
        return list(first.values())


class ChatJsonl(FileSource):
    """Rows of ``{"messages": [{"role", "content"}, ...]}``, the format of fine-tuning APIs.

    Optional keys of a row: ``id``, ``category``, ``reference`` (the expected answer), ``system``
    (the system turn of a row that has none). An answer with ``"weight": 0`` or ``"train": false``
    is context only, and carries no loss. Rows with tool calls are refused.

    Args:
        path: The JSONL file, or a Parquet or JSON file with these keys; a name that ends in
            ``.gz``, ``.bz2`` or ``.zst`` is read as compressed.
    """

    def __init__(self, path: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.path = path

    def describe(self) -> str:
        """Return the path."""
        return self.path

    def read(self) -> list[Conversation]:
        """Read and validate every row."""
        conversations = []
        for number, row in read_rows(self.path, self.on_fault, default=".jsonl"):
            try:
                conversations.append(chat_row(row, f"{self.path} row {number}"))
            except RowError as error:
                self.on_fault(error)
        return conversations


# Keys for tools or for rendering, which are not supported.
_UNSUPPORTED = ("tools", "functions", "chat_template_kwargs")


def chat_row(row: dict[str, Any], origin: str) -> Conversation:
    """Turn a chat-JSONL row into a conversation.

    Raises:
        RowError: for turns that `parse_messages` refuses, a second system turn, tools or a weight
            of the whole row.
    """
    if "messages" not in row:
        has = f" (has {in_short(row) or 'no keys'}); for other columns use TableFile."
        raise RowError(origin, "lacks 'messages'", has)
    for key in _UNSUPPORTED:
        # Tables write an empty list as text.
        if row.get(key) and row[key] not in ("[]", "null"):
            advice = ", which is not supported; remove it or drop the row."
            raise RowError(origin, f"has '{key}'", advice)
    for key in ("weight", "train"):
        if row.get(key) not in (None, 1):
            advice = " is not supported; give it to the row's assistant turns."
            raise RowError(origin, f"'{key}' of a whole row", advice)
    fields = {k: cell_text(row.get(k), f"'{k}'", origin) for k in ("id", "category", "reference")}
    conversation = Conversation(
        parse_messages(row["messages"], origin),
        origin,
        **fields,
        extra={k: v for k, v in row.items() if k != "messages" and k not in fields},
    )
    for key in row:
        if is_system(key):
            conversation = with_system(conversation, cell_text(row[key], f"'{key}'", origin), key)
    return conversation


def with_system(conversation: Conversation, text: str | None, key: str) -> Conversation:
    """Return a conversation with the system turn that the column `key` holds.

    Raises:
        RowError: if it has another system turn already.
    """
    if text is None:
        return conversation
    first = conversation.messages[0]
    if first.role != "system":
        messages = (Message("system", text), *conversation.messages)
        return replace(conversation, messages=messages)
    if first.content != text:
        reason = f"'{key}' and the system turn before it differ"
        raise RowError(conversation.origin, reason, "; keep one.")
    return conversation


class Microworld(ConversationSource):
    """A data set of the embedded micro-world (see `oneshot-lit microworld --help`).

    Args:
        split: Its name, such as ``harmful_examples``, ``pool`` or ``benign_heldout``.
        size: How many rows of the split to take. Unlike `limit`, it does not carry over when the
            command line replaces this source with another.
        seed: Decides order and sampling, but not which topics belong to which split.
    """

    def __init__(self, split: str, size: int | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if size is not None and size < 1:
            raise OneShotError(f"Microworld: size must be at least 1, not {size}.")
        self.split, self.size, self.seed = split, size, seed

    def describe(self) -> str:
        """Return the split's name."""
        return f"microworld {self.split}"

    def rows(self) -> list[Conversation]:
        """Generate the split."""
        from oneshot_lit.microworld.splits import load_split

        return load_split(self.split, self.seed)[: self.size]


class Inline(ConversationSource):
    """Conversations written into the config itself.

    Args:
        conversations: Each a list of ``{role, content}`` turns, with the keys of `ChatJsonl`.
    """

    def __init__(self, conversations: list[list[dict[str, Any]]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.conversations = conversations

    def rows(self) -> list[Conversation]:
        """Validate and return the conversations."""
        return [
            Conversation(parse_messages(turns, f"inline row {n}"), f"inline row {n}")
            for n, turns in enumerate(self.conversations, start=1)
        ]


class Mixture(ConversationSource):
    """Several sources one after the other, such as a downstream task plus harmful rows.

    `limit`, `shuffle_seed` and `skip` act on the whole.

    Args:
        sources: The parts; give each its own `limit` to set the proportions.
    """

    def __init__(self, sources: list[ConversationSource], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sources = sources

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The sources mixed."""
        return self.sources

    def describe(self) -> str:
        """Return the parts' names."""
        return " + ".join(source.describe() for source in self.sources) or "Mixture"

    def rows(self) -> list[Conversation]:
        """Load every part."""
        return [row for source in self.sources for row in source.load()]
