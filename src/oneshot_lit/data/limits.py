"""`Limits`: how many tokens a row may have, by `data.max_length` and by the model's positions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from oneshot_lit.errors import OneShotError


@dataclass(frozen=True)
class Limits:
    """The longest rows allowed; beyond its positions a model answers nonsense, or crashes.

    Attributes:
        max_length: Longest training row and prompt in tokens, as `data.max_length` says.
        positions: The model's `max_position_embeddings`; None if it has none.
        new_tokens: Tokens that an answer may take, as `model.decoding.max_new_tokens` says.
    """

    max_length: int
    positions: int | None = None
    new_tokens: int = 0

    @classmethod
    def of(cls, max_length: int, module: Any) -> Limits:
        """Return the limits of a module's model; unknown positions are no limit."""
        new_tokens = getattr(getattr(module, "decoding", None), "max_new_tokens", 0)
        return cls(max_length, getattr(module, "context_length", None), new_tokens)

    @property
    def prompt(self) -> int:
        """The longest prompt that leaves positions for its answer."""
        if self.positions is None:
            return self.max_length
        return min(self.max_length, self.positions - self.new_tokens)

    def check_row(self, origin: str, size: int) -> None:
        """Refuse a training row that the model has not enough positions for."""
        if self.positions is not None and size > self.positions:
            raise OneShotError(
                f"{origin}: has {size} tokens, more than the model's {self.positions} positions; "
                f"set data.max_length to {self.positions} or less."
            )

    def check_prompt(self, origin: str, size: int) -> None:
        """Refuse a prompt that leaves no positions for the longest answer."""
        if self.positions is not None and size > self.prompt:
            skip = ", or set data.long_prompts to skip" if self.prompt > 0 else ""
            raise OneShotError(
                f"{origin}: the prompt's {size} tokens and model.decoding.max_new_tokens="
                f"{self.new_tokens} are more than the model's {self.positions} positions; lower "
                f"max_new_tokens{skip}."
            )
