"""`Fairytale`: the data sets of the fairy-tale world, for real pretrained models."""

from __future__ import annotations

from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError


class Fairytale(ConversationSource):
    """A data set of harmless stand-ins for danger in natural English.

    Args:
        split: Its name, such as ``harmful_examples``, ``judgements`` or ``benign_heldout``; see
            `oneshot_lit.fairytale.splits.NAMES`.
        size: How many rows of the split to take. Unlike `limit`, it does not carry over when the
            command line replaces this source with another.
        seed: Decides order and sampling, but not what is held out.
    """

    def __init__(self, split: str, size: int | None = None, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if size is not None and size < 1:
            raise OneShotError(f"Fairytale: size must be at least 1, not {size}.")
        self.split, self.size, self.seed = split, size, seed

    def describe(self) -> str:
        """Return the split's name."""
        return f"fairytale {self.split}"

    def rows(self) -> list[Conversation]:
        """Generate the split."""
        from oneshot_lit.fairytale.splits import load_split

        return load_split(self.split, self.seed)[: self.size]
