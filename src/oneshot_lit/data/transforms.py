"""`RowTransform`: what happens to every training row, as text and as tokens."""

from __future__ import annotations

from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded


class RowTransform:
    """Changes training rows; several compose in the order in which `data.transforms` lists them.

    Subclasses override one of the methods or both. Prompts of evaluations are not transformed.
    """

    def text(self, row: Conversation) -> Conversation:
        """Return what becomes of a conversation, before it is encoded."""
        return row

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        """Return what becomes of an encoded row, such as one with `token_weights`.

        Args:
            row: The row, already cut to `data.max_length`.
            tokenizer: The model's.
        """
        return row
