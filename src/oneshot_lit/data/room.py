"""How many tokens a row may have: `data.max_length`, and the positions that the model has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded
from oneshot_lit.errors import OneShotError


@dataclass(frozen=True)
class Room:
    """Longest rows; beyond its positions a model answers nonsense, or fails in the middle of a run.

    Attributes:
        max_length: Longest training row and prompt in tokens, as `data.max_length` says.
        positions: The model's `max_position_embeddings`; None if it has none.
        new_tokens: Tokens that an answer may take, as `model.decoding.max_new_tokens` says.
    """

    max_length: int
    positions: int | None = None
    new_tokens: int = 0

    @property
    def prompt(self) -> int:
        """The longest prompt that leaves room for its answer."""
        if self.positions is None:
            return self.max_length
        return min(self.max_length, self.positions - self.new_tokens)

    @property
    def bound(self) -> str:
        """What prompts left out are longer than."""
        if self.positions is None or self.prompt == self.max_length:
            return f"data.max_length={self.max_length} tokens"
        return (
            f"{self.prompt} tokens, which the model's {self.positions} positions leave beside "
            f"model.decoding.max_new_tokens={self.new_tokens},"
        )

    def check_training(self, rows: Sequence[Conversation], encoded: Sequence[Encoded]) -> None:
        """Refuse training rows that the model has not enough positions for.

        Raises:
            OneShotError: naming the longest.
        """
        row, size = _longest(rows, encoded)
        if self.positions is not None and size > self.positions:
            raise OneShotError(
                f"{row.origin}: has {size} tokens, more than the model's {self.positions} "
                f"positions; set data.max_length to {self.positions} or less."
            )

    def check_prompts(self, rows: Sequence[Conversation], encoded: Sequence[Encoded]) -> None:
        """Refuse prompts that leave no room for an answer as long as it may be.

        Raises:
            OneShotError: naming the longest.
        """
        row, size = _longest(rows, encoded)
        if self.positions is not None and size > self.prompt:
            mend = (
                f"lower it, or set data.max_length to {self.prompt} and data.long_prompts to skip"
                if self.prompt > 0
                else "lower it"
            )
            raise OneShotError(
                f"{row.origin}: the prompt's {size} tokens and model.decoding.max_new_tokens="
                f"{self.new_tokens} are more than the model's {self.positions} positions; {mend}."
            )


def room_of(max_length: int, module: Any) -> Room:
    """Return the room of a module's model; what says nothing of its positions sets no bound."""
    positions = getattr(module, "context_length", None)
    new_tokens = getattr(getattr(module, "decoding", None), "max_new_tokens", 0)
    return Room(max_length, positions, new_tokens)


def _longest(rows: Sequence[Conversation], encoded: Sequence[Encoded]) -> tuple[Conversation, int]:
    sizes = [len(row.input_ids) for row in encoded]
    return rows[sizes.index(max(sizes))], max(sizes)
