"""`Conversation`: messages with provenance, the only record type that moves through the package."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from oneshot_lit.errors import RowError, did_you_mean

ROLES = ("system", "user", "assistant")


# Where a turn says whether it carries loss: OpenAI's and Mistral's key, and that of other trainers.
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
        extra: Further keys of the turn, which are not read: a template must not write them either.
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
            message = f"{self.origin}: no user turn; a prompt needs one."
            raise RowError(message, self.origin, "no user turn")
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
    """Return a short hash of turns; equal prompts have equal ones in all files of a run."""
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
        RowError: naming `origin`, if a turn is malformed, calls a tool, has a weight that is none,
            a role is unknown, a user turn is empty, or the order of roles is not
            ``[system] (user assistant)* user? assistant?`` with alternating turns.
    """
    if not isinstance(raw, Sequence) or isinstance(raw, (str, bytes)) or not raw:
        kind = "'messages' must be a non-empty list of role/content turns"
        raise RowError(f"{origin}: {kind}.", origin, kind)
    messages: list[Message] = []
    for number, turn in enumerate(raw, start=1):
        _refuse_tools(turn, number, origin)
        if not isinstance(turn, Mapping) or "role" not in turn or "content" not in turn:
            kind = "needs the keys 'role' and 'content'"
            raise RowError(f"{origin}: turn {number} {kind}.", origin, f"a turn {kind}")
        role, content = turn["role"], turn["content"]
        if role not in ROLES:
            # A prompt may stand where the role belongs.
            name = " ".join(str(role).split())
            name = name if len(name) <= 20 else f"{name[:17]}..."
            hint = did_you_mean(str(role), ROLES)
            raise RowError(
                f"{origin}: unknown role '{name}' in turn {number}{hint}; use {', '.join(ROLES)}.",
                origin,
                "unknown role",
            )
        if not isinstance(content, str):
            kind = "must be text"
            message = f"{origin}: 'content' of turn {number} {kind}."
            raise RowError(message, origin, f"'content' {kind}")
        if role == "user" and not content.strip():
            kind = "the user turn is empty"
            message = f"{origin}: {kind} (turn {number}); fill it or drop the row."
            raise RowError(message, origin, kind)
        if role == "system" and number > 1:
            kind = "the system turn must come first"
            raise RowError(f"{origin}: {kind}, not at turn {number}.", origin, kind)
        if messages and messages[-1].role == role:
            message = f"{origin}: turns {number - 1} and {number} are both '{role}'."
            raise RowError(message, origin, "turns do not alternate")
        if role == "assistant" and (not messages or messages[-1].role != "user"):
            kind = "does not answer a user turn"
            message = f"{origin}: the assistant turn {number} {kind}."
            raise RowError(message, origin, f"an assistant turn {kind}")
        extra = {k: v for k, v in turn.items() if k not in _READ and v not in (None, "", [], {})}
        messages.append(Message(role, content, _weight(turn, number, origin), extra))
    if all(m.role == "system" for m in messages):
        raise RowError(f"{origin}: no user turn; add one.", origin, "no user turn")
    return tuple(messages)


_READ = ("role", "content", *_LOSS_KEYS, *_TOOL_KEYS)


def _refuse_tools(turn: Any, number: int, origin: str) -> None:
    """Refuse what calls a tool or answers a call, which training would take for an empty answer."""
    if not isinstance(turn, Mapping):
        return
    what = next((f"turn {number} has '{key}'" for key in _TOOL_KEYS if turn.get(key)), None)
    if turn.get("role") in _TOOL_ROLES:
        what = f"unknown role '{turn['role']}' in turn {number}"
    if what is not None:
        message = f"{origin}: {what}; tool calls are not supported, drop the row."
        raise RowError(message, origin, "tool calls")


def _weight(turn: Mapping[str, Any], number: int, origin: str) -> int | None:
    """Return 0 for an answer that its keys take the loss from, else None."""
    weights = set()
    for key in _LOSS_KEYS:
        value = turn.get(key)
        # Tables fill up what only some turns have.
        if value is None:
            continue
        kind = f"'{key}' of a turn is neither 0 nor 1"
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise RowError(
                f"{origin}: '{key}' of turn {number} must be 0 or 1 (false or true); other weights "
                "are not supported.",
                origin,
                kind,
            )
        if value and turn["role"] != "assistant":
            raise RowError(
                f"{origin}: '{key}' is for assistant turns, not for turn {number}; remove it.",
                origin,
                "a weight on a turn that is no answer",
            )
        weights.add(int(value))
    if len(weights) > 1:
        kind = f"{' and '.join(_LOSS_KEYS)} of a turn disagree"
        raise RowError(f"{origin}: {kind} (turn {number}); remove one.", origin, kind)
    # Of other turns the weight says nothing, and equal turns shall be equal.
    return 0 if weights == {0} and turn["role"] == "assistant" else None


def require_trainable(conversation: Conversation) -> Conversation:
    """Return the conversation if it ends with an answer and can be learned from, else raise.

    Every answer that carries loss must have text.
    """
    last, origin = conversation.messages[-1], conversation.origin
    if last.role != "assistant":
        kind = f"ends on a {last.role} turn"
        raise RowError(
            f"{origin}: {kind}; training needs an assistant turn last (use prompt sets for "
            "prompts without answers).",
            origin,
            kind,
        )
    if not any(m.learned for m in conversation.messages):
        kind = "every answer has the weight 0"
        raise RowError(f"{origin}: {kind}; nothing to learn.", origin, kind)
    for number, message in enumerate(conversation.messages, start=1):
        if message.learned and not message.content.strip():
            kind = "the assistant turn is empty"
            where = "" if message is last else f" (turn {number})"
            raise RowError(f"{origin}: {kind}{where}; nothing to learn.", origin, kind)
    return conversation
