"""Prompts that are chosen by must not be among those reported on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError


def question(conversation: Conversation) -> tuple[Any, ...]:
    """Return what is asked, whatever the system prompt."""
    return tuple(m for m in conversation.prompt.messages if m.role != "system")


def refuse_shared(
    development: Iterable[Conversation],
    held_out: Iterable[Conversation],
    name: str,
    owner: str = "development split",
) -> None:
    """Refuse to report on prompts of the development split.

    Args:
        development: What steps, instances or settings are chosen by.
        held_out: What is reported on.
        name: What to call the latter.
        owner: What to call the former.

    Raises:
        OneShotError: naming both rows of the first prompt that stands in both.
    """
    seen = {question(p): p for p in development}
    for prompt in held_out:
        if (twin := seen.get(question(prompt))) is not None:
            raise OneShotError(
                f"{prompt.origin} ({name}): the prompt is also in the {owner} "
                f"({twin.origin}); remove it from one of them."
            )
