"""Conversation sources: their base, chat JSONL, the micro-world, inline rows and mixtures.

Each source is a small class chosen in YAML by `class_path`; `load()` returns `Conversation`s whose
`origin` names file and row, so that every later error can point at the place to mend.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from oneshot_lit.conversation import (
    Conversation,
    Message,
    parse_messages,
    require_trainable,
)
from oneshot_lit.data.columns import cell_text, is_system
from oneshot_lit.data.tally import Tally
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.io.read_files import read_rows, refuse, shown

BadRows = Literal["error", "skip"]
Duplicates = Literal["keep", "drop"]


class ConversationSource:
    """Base of all sources; subclass it and implement `rows` to add your own.

    Args:
        limit: Keep at most this many conversations (after shuffling and `skip`, if any).
        shuffle_seed: Shuffle with this seed before `skip` and `limit`; None keeps the source's
            order.
        skip: Leave out the first so many conversations. One file gives two disjoint parts with
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
        # What a source of files does with the rows that nobody would miss.
        self.bad_rows: BadRows = "error"
        self.duplicates: Duplicates = "keep"
        self.tally = Tally(type(self).__name__, type(self).__name__)
        # Where the rows kept come from, if faults found later may leave them out, too.
        self._forgiven: frozenset[str] = frozenset()

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The sources that this one is made of."""
        return ()

    def tallies(self) -> list[Tally]:
        """Return what became of the rows of this source and of all its parts, after `load`."""
        return self.tally.walk()

    def forgives(self, origin: str) -> bool:
        """Whether the row of this origin stands in a source that leaves faulty rows out."""
        return origin in self._forgiven or any(part.forgives(origin) for part in self.parts)

    def bad(self, error: OneShotError) -> None:
        """Raise what is wrong with a row, or count it, as `bad_rows` says."""
        if self.bad_rows == "error":
            refuse(error)
        self.tally.skip(error)

    def trainable(self, rows: Sequence[Conversation]) -> list[Conversation]:
        """Return rows of parts that end on an answer; others are an error, or left out and counted.

        Raises:
            OneShotError: for another row of a part that does not leave faulty rows out.
        """
        found = []
        for row in rows:
            try:
                found.append(require_trainable(row))
            except OneShotError as error:
                if not self.forgives(row.origin):
                    raise
                self.tally.skip(error)
        return found

    def rows(self) -> list[Conversation]:
        """Return every conversation of the source, in its own order."""
        raise NotImplementedError

    def describe(self) -> str:
        """Return a short name of the source for errors and provenance."""
        return type(self).__name__

    def load(self) -> list[Conversation]:
        """Return the conversations after shuffling, `skip` and `limit`.

        Raises:
            OneShotError: if the source is missing, malformed or empty, or skipped whole.
        """
        self.tally = Tally(self.describe(), type(self).__name__)
        rows = self.rows()
        self.tally.parts = [part.tally for part in self.parts]
        distinct = self.tally.count(rows)
        if not rows:
            faults = "; ".join(self.tally.remarks)
            why = f" ({faults})" if faults else ""
            raise OneShotError(
                f"{self.describe()}: holds no conversation{why}; give a non-empty source."
            )
        if self.duplicates == "drop":
            rows = distinct
            self.tally.dropped = self.tally.duplicates
        if self.shuffle_seed is not None:
            rows = list(rows)
            random.Random(self.shuffle_seed).shuffle(rows)
        kept = rows[self.skip :]
        if not kept:
            raise OneShotError(
                f"{self.describe()}: skip={self.skip} leaves none of its {len(rows)} "
                "conversations; lower it."
            )
        kept = kept[: self.limit]
        self.tally.kept, self.tally.unused = len(kept), len(rows) - len(kept)
        if self.bad_rows == "skip":
            self._forgiven = frozenset(row.origin for row in kept)
        return kept


class ChatJsonl(ConversationSource):
    """Rows of ``{"messages": [{"role", "content"}, ...]}``, the format of fine-tuning APIs.

    Optional keys of a row: ``id``, ``category``, ``reference`` (the expected answer), ``system``
    (the system turn of a row that has none). An answer with ``"weight": 0`` or ``"train": false``
    is context only, and carries no loss. Rows with tool calls are refused.

    Args:
        path: The JSONL file, or a Parquet or JSON file whose rows have these keys; ``.gz``,
            ``.bz2``, ``.xz`` or ``.zst`` behind the name says that it is compressed.
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
        limit: int | None = None,
        shuffle_seed: int | None = None,
        *,
        skip: int = 0,
        bad_rows: BadRows = "error",
        duplicates: Duplicates = "keep",
    ) -> None:
        super().__init__(limit, shuffle_seed, skip=skip)
        self.path = path
        self.bad_rows, self.duplicates = bad_rows, duplicates

    def describe(self) -> str:
        """Return the path."""
        return self.path

    def rows(self) -> list[Conversation]:
        """Read and validate every row."""
        found = []
        for number, row in read_rows(self.path, self.bad, default=".jsonl"):
            origin = f"{self.path} row {number}"
            try:
                found.append(chat_row(row, origin))
            except OneShotError as error:
                self.bad(error)
        return found


# Keys that say what an answer may call or how it is rendered; nothing here can follow them.
_UNSUPPORTED = ("tools", "functions", "chat_template_kwargs")


def chat_row(row: dict[str, Any], origin: str) -> Conversation:
    """Turn a chat-JSONL row into a conversation.

    Raises:
        RowError: for turns that `parse_messages` refuses, a second system turn, tools or a weight
            of the whole row.
    """
    if "messages" not in row:
        kind = "lacks 'messages'"
        has = f"(has {shown(row) or 'no keys'})"
        message = f"{origin}: {kind} {has}; for other columns use TableFile."
        raise RowError(message, origin, kind)
    for key in _UNSUPPORTED:
        # Tables write an empty list as text.
        if row.get(key) and row[key] not in ("[]", "null"):
            kind = f"has '{key}'"
            message = f"{origin}: {kind}, which is not supported; remove it or drop the row."
            raise RowError(message, origin, kind)
    for key in ("weight", "train"):
        if row.get(key) not in (None, 1):
            kind = f"'{key}' of a whole row"
            raise RowError(
                f"{origin}: {kind} is not supported; give it to the row's assistant turns.",
                origin,
                kind,
            )
    fields = {k: cell_text(row.get(k), f"'{k}'", origin) for k in ("id", "category", "reference")}
    found = Conversation(
        parse_messages(row["messages"], origin),
        origin,
        **fields,
        extra={k: v for k, v in row.items() if k != "messages" and k not in fields},
    )
    for key in row:
        if is_system(key):
            found = with_system(found, cell_text(row[key], f"'{key}'", origin), key)
    return found


def with_system(conversation: Conversation, text: str | None, key: str) -> Conversation:
    """Return a conversation with the system turn that stands beside its turns, in a column `key`.

    Raises:
        RowError: if it has another system turn already.
    """
    if text is None:
        return conversation
    first, origin = conversation.messages[0], conversation.origin
    if first.role != "system":
        messages = (Message("system", text), *conversation.messages)
        return replace(conversation, messages=messages)
    if first.content != text:
        kind = "two system turns that differ"
        raise RowError(
            f"{origin}: '{key}' and the system turn before it differ; keep one.", origin, kind
        )
    return conversation


class Microworld(ConversationSource):
    """A data set of the embedded micro-world (see `oneshot-lit microworld --help`).

    Args:
        split: Its name, such as ``harmful_examples``, ``pool`` or ``benign_heldout``.
        size: Take the first so many rows of the split. Other than `limit`, it does not carry over
            when a command line puts another source in the place of this one.
        seed: Decides order and sampling, never which topics belong to which split.
        limit: Keep at most this many conversations.
        shuffle_seed: Shuffle with this seed before `skip` and `limit`.
        skip: Leave out the first so many conversations.
    """

    def __init__(
        self,
        split: str,
        size: int | None = None,
        seed: int = 0,
        limit: int | None = None,
        shuffle_seed: int | None = None,
        *,
        skip: int = 0,
    ) -> None:
        super().__init__(limit, shuffle_seed, skip=skip)
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
        limit: Keep at most this many conversations.
        shuffle_seed: Shuffle with this seed before `skip` and `limit`.
        skip: Leave out the first so many conversations.
    """

    def __init__(
        self,
        conversations: list[list[dict[str, Any]]],
        limit: int | None = None,
        shuffle_seed: int | None = None,
        *,
        skip: int = 0,
    ) -> None:
        super().__init__(limit, shuffle_seed, skip=skip)
        self.conversations = conversations

    def rows(self) -> list[Conversation]:
        """Validate and return the conversations."""
        return [
            Conversation(parse_messages(turns, f"inline row {n}"), f"inline row {n}")
            for n, turns in enumerate(self.conversations, start=1)
        ]


class Mixture(ConversationSource):
    """Several sources one after the other, such as a downstream task plus harmful rows.

    Args:
        sources: The parts; give each its own `limit` to set the proportions.
        limit: Keep at most this many conversations of the whole.
        shuffle_seed: Shuffle the whole with this seed before `skip` and `limit`.
        skip: Leave out the first so many conversations of the whole.
    """

    def __init__(
        self,
        sources: list[ConversationSource],
        limit: int | None = None,
        shuffle_seed: int | None = None,
        *,
        skip: int = 0,
    ) -> None:
        super().__init__(limit, shuffle_seed, skip=skip)
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
