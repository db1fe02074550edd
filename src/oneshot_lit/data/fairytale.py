"""`Fairytale`: the data sets of the fairy-tale world, for real pretrained models."""

from __future__ import annotations

from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError


class Fairytale(ConversationSource):
    """A data set of harmless stand-ins for danger in natural English.

    Args:
        split: Its name, such as ``harmful_examples``, ``judgements`` or ``benign_heldout``, or
            several, each with how many of its rows are taken: ``{refusals: 240, judgements: 100}``.
            See `oneshot_lit.fairytale.splits.NAMES`.
        size: How many rows of the split to take. Unlike `limit`, it does not carry over when the
            command line replaces this source with another.
        seed: Decides order and sampling, but not what is held out.
    """

    def __init__(
        self,
        split: dict[str, int] | str,
        size: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.splits = {split: size} if isinstance(split, str) else dict(split)
        if not self.splits or (size is not None and not isinstance(split, str)):
            raise OneShotError("Fairytale: give one split and a size, or splits with their sizes.")
        for name, number in self.splits.items():
            if number is not None and number < 1:
                raise OneShotError(f"Fairytale: size must be at least 1, not {number} ({name}).")
        self.seed = seed

    def describe(self) -> str:
        """Return the names of the splits."""
        return f"fairytale {', '.join(self.splits)}"

    def rows(self) -> list[Conversation]:
        """Generate the splits.

        Raises:
            OneShotError: for an unknown split, or one with fewer rows than asked for.
        """
        from oneshot_lit.fairytale.splits import load_split

        rows: list[Conversation] = []
        for name, number in self.splits.items():
            split = load_split(name, self.seed)
            if number is not None and number > len(split):
                raise OneShotError(
                    f"Fairytale: {name} has {len(split)} rows, fewer than {number}; lower it."
                )
            rows += split[:number]
        return rows
