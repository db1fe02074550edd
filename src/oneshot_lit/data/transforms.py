"""`RowTransform`: a change of every training row, as text or as tokens."""

from __future__ import annotations

from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded


class RowTransform:
    """Changes training rows; several compose in the order in which `data.transforms` lists them.

    Subclasses override one method or more. Evaluation prompts are not transformed.
    """

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Get the model's tokenizer, before the first row; for texts that depend on tokens."""

    def text(self, row: Conversation) -> Conversation:
        """Return the changed conversation; called before it is encoded."""
        return row

    def tokens(self, row: Encoded, tokenizer: Any) -> Encoded:
        """Return the changed row, for example with `token_weights`.

        Args:
            row: The row, already truncated to `data.max_length`.
            tokenizer: The model's tokenizer.
        """
        return row
