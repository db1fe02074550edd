"""Checks that no development prompt is also in a held-out set."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError


def question(conversation: Conversation) -> tuple[Any, ...]:
    """Return what is asked, without the system prompt."""
    return tuple(m for m in conversation.prompt.messages if m.role != "system")


def refuse_shared(
    development: Iterable[Conversation],
    held_out: Iterable[Conversation],
    name: str,
    owner: str = "development split",
) -> None:
    """Refuse to report on prompts of the development split.

    Args:
        development: Prompts by which steps, instances or settings are chosen.
        held_out: Prompts that are reported on.
        name: What to call the held-out prompts in the error.
        owner: What to call the development prompts in the error.

    Raises:
        OneShotError: naming both rows of the first prompt that is in both.
    """
    seen = {question(p): p for p in development}
    for prompt in held_out:
        if (twin := seen.get(question(prompt))) is not None:
            raise OneShotError(
                f"{prompt.origin} ({name}): the prompt is also in the {owner} "
                f"({twin.origin}); remove it from one of them."
            )
