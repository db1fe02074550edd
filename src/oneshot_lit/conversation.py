"""`Conversation`: messages with provenance, the only record type that moves through the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oneshot_lit.errors import RowError, did_you_mean

ROLES = ("system", "user", "assistant")


# Keys by which a turn says whether it carries loss: that of OpenAI and Mistral, and that of others.
_LOSS_KEYS = ("weight", "train")
_TOOL_KEYS = ("tool_calls", "function_call")
_TOOL_ROLES = ("tool", "function", "ipython", "observation")


@dataclass(frozen=True)
class Message:
    """One turn of plain text.

    Attributes:
        role: system, user or assistant.
        content: The text.
        weight: 0 for an answer that is context only and carries no loss, else None.
        extra: Other keys of the turn, which are not read; a template must not write them either.
    """

    role: str
    content: str
    weight: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

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
        extra: Any further columns of the source.
    """

    messages: tuple[Message, ...]
    origin: str = "inline"
    id: str | None = None
    category: str | None = None
    reference: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict, compare=False)

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
        _refuse_tools(turn, number, origin)
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            reason = "a turn needs the keys 'role' and 'content'"
            raise RowError(origin, reason, f" (turn {number}).")
        role, content = turn["role"], turn["content"]
        if role not in ROLES:
            # The role may be a whole prompt by mistake.
            name = " ".join(str(role).split())
            name = name if len(name) <= 20 else f"{name[:17]}..."
            hint = did_you_mean(str(role), ROLES)
            advice = f" '{name}' in turn {number}{hint}; use {', '.join(ROLES)}."
            raise RowError(origin, "unknown role", advice)
        if not isinstance(content, str):
            raise RowError(origin, "'content' must be text", f" (turn {number}).")
        if role == "user" and not content.strip():
            advice = f" (turn {number}); fill it or drop the row."
            raise RowError(origin, "the user turn is empty", advice)
        if role == "system" and number > 1:
            raise RowError(origin, "the system turn must come first", f", not at turn {number}.")
        if messages and messages[-1].role == role:
            advice = f": {number - 1} and {number} are both '{role}'."
            raise RowError(origin, "turns do not alternate", advice)
        if role == "assistant" and (not messages or messages[-1].role != "user"):
            reason = "an assistant turn does not answer a user turn"
            raise RowError(origin, reason, f" (turn {number}).")
        extra = {k: v for k, v in turn.items() if k not in _READ and v not in (None, "", [], {})}
        messages.append(Message(role, content, _weight(turn, number, origin), extra))
    if all(m.role == "system" for m in messages):
        raise RowError(origin, "no user turn", "; add one.")
    return tuple(messages)


_READ = ("role", "content", *_LOSS_KEYS, *_TOOL_KEYS)


def _refuse_tools(turn: Any, number: int, origin: str) -> None:
    """Refuse tool calls and their results, which training would take for empty answers."""
    if not isinstance(turn, Mapping):
        return
    what = next((f"turn {number} has '{key}'" for key in _TOOL_KEYS if turn.get(key)), None)
    if turn.get("role") in _TOOL_ROLES:
        what = f"unknown role '{turn['role']}' in turn {number}"
    if what is not None:
        raise RowError(origin, "tool calls", f" are not supported ({what}); drop the row.")


def _weight(turn: Mapping[str, Any], number: int, origin: str) -> int | None:
    """Return 0 for an answer whose keys say that it carries no loss, else None."""
    weights = set()
    for key in _LOSS_KEYS:
        value = turn.get(key)
        # In a table, turns without the key have None.
        if value is None:
            continue
        if not isinstance(value, (int, float)) or value not in (0, 1):
            advice = f" (turn {number}); other weights are not supported."
            raise RowError(origin, f"'{key}' must be 0 or 1, false or true", advice)
        if value and turn["role"] != "assistant":
            advice = f", not for turn {number}; remove it."
            raise RowError(origin, f"'{key}' is for assistant turns", advice)
        weights.add(int(value))
    if len(weights) > 1:
        reason = f"{' and '.join(_LOSS_KEYS)} of a turn disagree"
        raise RowError(origin, reason, f" (turn {number}); remove one.")
    # On other turns the weight means nothing; without it equal turns compare equal.
    return 0 if weights == {0} and turn["role"] == "assistant" else None


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
