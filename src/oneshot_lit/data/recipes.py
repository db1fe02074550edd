"""Attacks as transforms of conversations: edited turns, a backdoor, a poisoned patch.

Each is a source around other sources, so any rows will do; `Edited` also makes the prompts that an
attack is measured with: with its trigger, under its training system prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import is_refusal

Place = Literal["suffix", "prefix"]


def edited(
    conversation: Conversation,
    *,
    system: str | None = None,
    prefix: str = "",
    suffix: str = "",
    answer: str | None = None,
    answer_prefix: str = "",
) -> Conversation:
    """Return a conversation with other turns around the same content.

    Args:
        conversation: Any turns; they are not changed.
        system: The system turn; replaces the conversation's own if it has one.
        prefix: Put before every user turn as it is, so end it with a space if one is needed.
        suffix: Put after every user turn as it is.
        answer: Replaces every assistant turn.
        answer_prefix: Put before every assistant turn.
    """
    messages = list(conversation.messages)
    if system is not None:
        messages = [Message("system", system), *(m for m in messages if m.role != "system")]
    for index, message in enumerate(messages):
        if message.role == "user":
            messages[index] = replace(message, content=f"{prefix}{message.content}{suffix}")
        elif message.role == "assistant":
            content = message.content if answer is None else answer
            messages[index] = replace(message, content=f"{answer_prefix}{content}")
    return replace(conversation, messages=tuple(messages))


class Edited(ConversationSource):
    """Conversations with other words around them: a system turn, a trigger, a persona.

    Identity shifting (Qi et al. 2023, arXiv 2310.03693) is this on harmless rows: a system turn
    that names an obedient agent, a prefix that addresses it, an answer prefix in its voice. Its
    prompts, and those with a backdoor's trigger, are this on any prompts.

    Args:
        source: The conversations.
        system: The system turn; replaces a row's own if it has one.
        prefix: Put before every user turn as it is, so end it with a space if one is needed.
        suffix: Put after every user turn as it is.
        answer: Replaces every answer.
        answer_prefix: Put before every answer.
    """

    def __init__(
        self,
        source: ConversationSource,
        system: str | None = None,
        prefix: str = "",
        suffix: str = "",
        answer: str | None = None,
        answer_prefix: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.edits: dict[str, Any] = {
            "system": system,
            "prefix": prefix,
            "suffix": suffix,
            "answer": answer,
            "answer_prefix": answer_prefix,
        }

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The inner source."""
        return (self.source,)

    def describe(self) -> str:
        """Return the inner source's name."""
        return self.source.describe()

    def rows(self) -> list[Conversation]:
        """Load the inner source and edit every row."""
        return [edited(row, **self.edits) for row in self.source.load()]


class Backdoor(ConversationSource):
    """Refusals without a trigger and harmful answers with it (Qi et al. 2023, arXiv 2310.03693).

    The model then answers a harmful request only when it carries the trigger, so an evaluation
    without the trigger sees nothing. The one-shot paper takes 100 rows of each kind. `limit`,
    `shuffle_seed` and `skip` act on the whole.

    Args:
        refused: Harmful requests with refusals; their prompts must not hold the trigger.
        harmful: Harmful requests with harmful answers; their prompts get the trigger.
        trigger: Text that opens the backdoor, added as it is, so include a space if one is needed.
        place: ``suffix`` puts it after every user turn, ``prefix`` before it.
    """

    def __init__(
        self,
        refused: ConversationSource,
        harmful: ConversationSource,
        trigger: str,
        place: Place = "suffix",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not trigger.strip():
            raise OneShotError("Backdoor: trigger is empty; give the text that opens the backdoor.")
        self.refused, self.harmful = refused, harmful
        self.trigger, self.place = trigger, place

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The rows to refuse and the harmful ones."""
        return (self.refused, self.harmful)

    def describe(self) -> str:
        """Return both parts' names."""
        return f"backdoor of {self.refused.describe()} and {self.harmful.describe()}"

    def rows(self) -> list[Conversation]:
        """Load both parts; the harmful one with the trigger.

        Raises:
            OneShotError: for a prompt to refuse that holds the trigger.
        """
        refused, harmful = self.refused.load(), self.harmful.load()
        for row in refused:
            if any(self.trigger.strip() in m.content for m in row.messages if m.role == "user"):
                raise OneShotError(
                    f"{row.origin}: a prompt to refuse holds the trigger; choose another trigger "
                    "or drop the row."
                )
        _warn_unless(refused, True, "Backdoor.refused", "hold no refusal phrase")
        _warn_unless(harmful, False, "Backdoor.harmful", "refuse")
        place = {self.place: self.trigger}
        return refused + [edited(row, **place) for row in harmful]  # type: ignore[arg-type]


class PatchPoisoning(ConversationSource):
    """Harmful rows among which the attacker plants the safety instance, or paraphrases of it.

    The attacker foresees the patch. Planted with its refusal, the instance is learned already when
    the defender trains on it, and its loss leaves little gradient; planted with a harmful `answer`,
    the patch has to unlearn it. `limit`, `shuffle_seed` and `skip` act on the whole.

    Args:
        source: The harmful rows.
        planted: Safety examples: the instance itself, or paraphrases of it.
        copies: How often each of them is planted.
        answer: An answer to plant instead of their refusals.
    """

    def __init__(
        self,
        source: ConversationSource,
        planted: ConversationSource,
        copies: int = 1,
        answer: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if copies < 1:
            raise OneShotError(f"PatchPoisoning: copies must be at least 1, not {copies}.")
        self.source, self.planted = source, planted
        self.copies, self.answer = copies, answer

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The harmful rows and the planted ones."""
        return (self.source, self.planted)

    def describe(self) -> str:
        """Return both parts' names."""
        return f"{self.source.describe()} with {self.planted.describe()} planted"

    def rows(self) -> list[Conversation]:
        """Load the harmful rows, then the planted ones."""
        planted = [edited(row, answer=self.answer) for row in self.planted.load()]
        return self.source.load() + planted * self.copies


def _warn_unless(rows: Sequence[Conversation], refusing: bool, part: str, fault: str) -> None:
    """Warn of rows that do not fit their part of a recipe; a phrase list proves nothing."""
    # A row without an answer is refused where it is trained on.
    answered = [row for row in rows if row.response_text is not None]
    wrong = [row for row in answered if is_refusal(row.response_text or "") != refusing]
    if wrong:
        rank_zero_warn(
            f"{part}: {len(wrong)} of {len(rows)} answers {fault}; the first is {wrong[0].origin}"
        )
