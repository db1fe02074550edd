"""Attacks as sources around other sources: edited turns, a backdoor, a poisoned patch.

`Edited` also makes the prompts that an attack is measured with: with its trigger, under its
training system prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.sources import ConversationSource, Mixture
from oneshot_lit.errors import OneShotError


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
        self.source, self.system, self.prefix, self.suffix = source, system, prefix, suffix
        self.answer, self.answer_prefix = answer, answer_prefix

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The inner source."""
        return (self.source,)

    def describe(self) -> str:
        """Return the inner source's name."""
        return self.source.describe()

    def rows(self) -> list[Conversation]:
        """Load the inner source and edit every row."""
        return [self.edit(row) for row in self.source.load()]

    def edit(self, conversation: Conversation) -> Conversation:
        """Return a conversation with other words around the same content."""
        messages = list(conversation.messages)
        if self.system is not None:
            messages = [
                Message("system", self.system),
                *(m for m in messages if m.role != "system"),
            ]
        for index, message in enumerate(messages):
            content = message.content
            if message.role == "user":
                content = f"{self.prefix}{content}{self.suffix}"
            elif message.role == "assistant":
                content = f"{self.answer_prefix}{content if self.answer is None else self.answer}"
            messages[index] = replace(message, content=content)
        return replace(conversation, messages=tuple(messages))


class Backdoor(Mixture):
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
        place: Literal["suffix", "prefix"] = "suffix",
        **kwargs: Any,
    ) -> None:
        if not trigger.strip():
            raise OneShotError("Backdoor: trigger is empty; give the text that opens the backdoor.")
        around = {place: trigger}
        super().__init__([refused, Edited(harmful, **around)], **kwargs)
        self.trigger = trigger

    def rows(self) -> list[Conversation]:
        """Load both parts.

        Raises:
            OneShotError: for a prompt to refuse that holds the trigger.
        """
        refused, harmful = (source.load() for source in self.sources)
        for row in refused:
            if any(self.trigger.strip() in m.content for m in row.messages if m.role == "user"):
                raise OneShotError(
                    f"{row.origin}: a prompt to refuse holds the trigger; choose another trigger "
                    "or drop the row."
                )
        return refused + harmful


class PatchPoisoning(Mixture):
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
        if copies < 1:
            raise OneShotError(f"PatchPoisoning: copies must be at least 1, not {copies}.")
        super().__init__([source, Edited(planted, answer=answer)], **kwargs)
        self.copies = copies

    def rows(self) -> list[Conversation]:
        """Load the harmful rows, then the planted ones."""
        harmful, planted = (source.load() for source in self.sources)
        return harmful + planted * self.copies
