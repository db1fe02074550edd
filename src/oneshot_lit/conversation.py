"""`Conversation`: messages with provenance, the only record type that moves through the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from oneshot_lit.errors import RowError, did_you_mean

ROLES = ("system", "user", "assistant")


# Keys by which a turn says whether it carries loss: that of OpenAI and Mistral, and that of others.
_LOSS_KEYS = ("weight", "train")
# Training would take tool calls and their results for empty answers, and lose thoughts.
_UNSUPPORTED_KEYS = ("tool_calls", "function_call", "reasoning_content")
_TOOL_ROLES = ("tool", "function", "ipython", "observation")


@dataclass(frozen=True)
class Message:
    """One turn of plain text.

    Attributes:
        role: system, user or assistant.
        content: The text.
        weight: 0 for an answer that is context only and carries no loss, else None.
    """

    role: str
    content: str
    weight: int | None = None

    @property
    def learned(self) -> bool:
        """Whether the turn carries loss when it is trained on."""
        return self.role == "assistant" and self.weight != 0

    def as_dict(self) -> dict[str, Any]:
        """Return the turn as a chat-JSONL row has it."""
        turn: dict[str, Any] = {"role": self.role, "content": self.content}
        return {**turn, "weight": 0} if self.weight == 0 else turn


@dataclass(frozen=True)
class Conversation:
    """Messages in order, with where they came from.

    Attributes:
        messages: The turns; an optional system turn comes first.
        origin: Human-readable place, such as ``rows.jsonl row 3``, used in every error.
        id: The identifier in the source, if it has one.
        category: Topic or harm category, if known.
        reference: The expected answer, for scoring.
    """

    messages: tuple[Message, ...]
    origin: str = "inline"
    id: str | None = None
    category: str | None = None
    reference: str | None = None

    @property
    def prompt(self) -> Conversation:
        """The conversation up to and including its last user turn, as given to `generate`.

        A prompt carries no loss, so the weights of its turns are dropped: prompts of equal text are
        equal.
        """
        last = max((i for i, m in enumerate(self.messages) if m.role == "user"), default=None)
        if last is None:
            raise RowError(self.origin, "no user turn", "; a prompt needs one.")
        return replace(
            self, messages=tuple(replace(m, weight=None) for m in self.messages[: last + 1])
        )

    @property
    def prompt_text(self) -> str:
        """The text of the last user turn."""
        return self.prompt.messages[-1].content

    @property
    def response_text(self) -> str | None:
        """The text of the final assistant turn, or None for a prompt."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else None

    def as_dict(self) -> dict[str, Any]:
        """Return the chat-JSONL row for this conversation."""
        row: dict[str, Any] = {"messages": [m.as_dict() for m in self.messages]}
        for key in ("id", "category", "reference"):
            if getattr(self, key) is not None:
                row[key] = getattr(self, key)
        return row

    def digest(self) -> str:
        """Return a short content hash that does not depend on the origin."""
        return digest_of(self.messages)


def digest_of(messages: Sequence[Message]) -> str:
    """Return a short hash of turns; a prompt has the same hash in all files of a run."""
    turns = [[m.role, m.content, *([0] if m.weight == 0 else [])] for m in messages]
    text = json.dumps(turns, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def conversation_from_pair(
    prompt: str, response: str | None = None, *, system: str | None = None, **fields: Any
) -> Conversation:
    """Build a single-turn conversation from plain strings."""
    messages = [] if system is None else [Message("system", system)]
    messages.append(Message("user", prompt))
    if response is not None:
        messages.append(Message("assistant", response))
    return Conversation(tuple(messages), **fields)


def parse_messages(raw: Any, origin: str) -> tuple[Message, ...]:
    """Validate a ``messages`` list and return it as `Message` objects.

    Raises:
        RowError: naming `origin`, if a turn is malformed, calls a tool or has an invalid weight, a
            role is unknown, a user turn is empty, or the order of roles is not
            ``[system] (user assistant)* user? assistant?`` with alternating turns.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)) or not raw:
        raise RowError(origin, "'messages' must be a non-empty list of role/content turns")
    messages: list[Message] = []
    for number, turn in enumerate(raw, start=1):
        messages.append(_message(turn, number, origin))
        role, before = messages[-1].role, messages[-2].role if number > 1 else None
        if role == "system" and number > 1:
            raise RowError(origin, "the system turn must come first", f", not at turn {number}.")
        if role == before:
            advice = f": {number - 1} and {number} are both '{role}'."
            raise RowError(origin, "turns do not alternate", advice)
        if role == "assistant" and before != "user":
            reason = "an assistant turn does not answer a user turn"
            raise RowError(origin, reason, f" (turn {number}).")
    if all(m.role == "system" for m in messages):
        raise RowError(origin, "no user turn", "; add one.")
    return tuple(messages)


def _message(turn: Any, number: int, origin: str) -> Message:
    """Return one turn; keys that change nothing, such as a name, are ignored."""
    is_turn = isinstance(turn, Mapping)
    for key in _UNSUPPORTED_KEYS if is_turn else ():
        if turn.get(key):
            raise RowError(origin, f"'{key}' is not supported", f" (turn {number}); drop the row.")
    if is_turn and turn.get("role") in _TOOL_ROLES:
        advice = f" (role '{turn['role']}' in turn {number}); drop the row."
        raise RowError(origin, "tool calls are not supported", advice)
    if not is_turn or "role" not in turn or "content" not in turn:
        reason = "a turn needs the keys 'role' and 'content'"
        raise RowError(origin, reason, f" (turn {number}).")
    role, content = turn["role"], turn["content"]
    if role not in ROLES:
        # The role may be a whole prompt by mistake.
        name = " ".join(str(role).split())[:20]
        hint = did_you_mean(str(role), ROLES)
        advice = f" '{name}' in turn {number}{hint}; use {', '.join(ROLES)}."
        raise RowError(origin, "unknown role", advice)
    if not isinstance(content, str):
        raise RowError(origin, "'content' must be text", f" (turn {number}).")
    if role == "user" and not content.strip():
        advice = f" (turn {number}); fill it or drop the row."
        raise RowError(origin, "the user turn is empty", advice)
    weights = {key: turn[key] for key in _LOSS_KEYS if turn.get(key) is not None}
    for key, value in weights.items():
        if value not in (0, 1):
            advice = f" (turn {number}); other weights are not supported."
            raise RowError(origin, f"'{key}' must be 0 or 1, false or true", advice)
    # On other turns the weight means nothing; without it equal turns compare equal.
    return Message(role, content, 0 if role == "assistant" and 0 in weights.values() else None)


def require_trainable(conversation: Conversation) -> Conversation:
    """Return the conversation if it ends with an answer and can be learned from, else raise.

    Every answer that carries loss must have text.
    """
    last, origin = conversation.messages[-1], conversation.origin
    if last.role != "assistant":
        raise RowError(
            origin,
            f"ends on a {last.role} turn",
            "; training needs an assistant turn last (a prompt set does not).",
        )
    if not any(m.learned for m in conversation.messages):
        raise RowError(origin, "every answer has the weight 0", "; nothing to learn.")
    for number, message in enumerate(conversation.messages, start=1):
        if message.learned and not message.content.strip():
            where = "" if message is last else f" (turn {number})"
            raise RowError(origin, "the assistant turn is empty", f"{where}; nothing to learn.")
    return conversation
