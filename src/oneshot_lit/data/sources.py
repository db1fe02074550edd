"""Conversation sources: their base, the micro-world, inline rows and mixtures.

Each source is a small class chosen in YAML by `class_path`; `load()` returns `Conversation`s. Their
`origin` names file and row, so that every later error can point at the row to fix.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from oneshot_lit.conversation import Conversation, parse_messages
from oneshot_lit.data.left_out import LeftOut
from oneshot_lit.errors import OneShotError


class ConversationSource:
    """Base of all sources; subclass it and implement `rows` to add your own.

    After `load`, `left_out` counts the rows that the source and its parts have left out.

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

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Get the model's tokenizer, before a fit loads the rows; parts get it, too."""
        for part in self.parts:
            part.use_tokenizer(tokenizer)

    @property
    def skips_bad_rows(self) -> bool:
        """Whether faulty rows are left out, even if the fault shows only when they are used."""
        return bool(self.parts) and all(part.skips_bad_rows for part in self.parts)

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
        for part in self.parts:
            self.left_out.add(part.left_out)
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
