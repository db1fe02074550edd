"""Conversation -> token ids and loss mask: the one function used by training and evaluation.

The chat template renders the text; the loss mask is found by rendering every prefix that ends in
a generation prompt, so what a model is trained to continue is exactly what it is later given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from oneshot_lit.data.conversation import Conversation, Message
from oneshot_lit.errors import OneShotError, RowError

SystemTurn = Literal["template", "user"]


@dataclass(frozen=True)
class ChatOptions:
    """What a family's chat format needs beyond its template; see `set_chat_options`.

    Attributes:
        system_turn: ``template`` hands a system turn to the template; ``user`` puts its text before
            the first user turn, for templates that have no system role or move it about.
        stop_tokens: Further tokens that end an answer.
    """

    system_turn: SystemTurn = "template"
    stop_tokens: tuple[str, ...] = ()


def set_chat_options(tokenizer: Any, options: ChatOptions, name: str) -> None:
    """Let a tokenizer be used with these options, wherever conversations are encoded with it.

    Raises:
        OneShotError: for a stop token that the tokenizer does not have as one token.
    """
    known = tokenizer.get_vocab()
    for token in options.stop_tokens:
        if token not in known:
            raise OneShotError(
                f"model.stop_tokens: '{token}' is no token of {name}; "
                "see its tokenizer_config.json for the names."
            )
    tokenizer.chat_options = options


def _options(tokenizer: Any) -> ChatOptions:
    return getattr(tokenizer, "chat_options", None) or ChatOptions()


def _system_into_user(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Put the text of a system turn before that of the first user turn, a blank line between."""
    if len(turns) < 2 or turns[0]["role"] != "system":
        return turns
    system, user, *rest = turns
    return [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation and, for each, whether it carries loss.

    Attributes:
        input_ids: Token ids, length ``tokens``.
        loss_mask: True on assistant tokens and their end-of-turn token; all False for a prompt.
        cut: How many tokens of the conversation `max_length` dropped from its end, 0 where the row
            is whole; a prompt is never cut. It counts tokens without loss too, such as a newline
            that the template writes after the end of turn.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    cut: int = 0


def _render(tokenizer: Any, messages: Sequence[Message], generation: bool, origin: str) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    if _options(tokenizer).system_turn == "user":
        turns = _system_into_user(turns)
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation
        )
    except Exception as error:  # jinja raises whatever the template's author chose
        reason = " ".join(str(error).split()).rstrip(".")
        mend = "; set model.system_turn to user" if turns[0]["role"] == "system" else ""
        kind = "the chat template refuses these turns"
        raise RowError(f"{origin}: {kind}: {reason}{mend}.", origin, kind) from error
    return str(text)


def _tokenize(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    # The template already writes BOS, so the tokenizer must not add its own.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [tuple(o) for o in encoded["offset_mapping"]]


def _assistant_spans(
    tokenizer: Any, conversation: Conversation, full_text: str
) -> list[tuple[int, int]]:
    """Return character spans of every assistant answer in the rendered text."""
    spans = []
    messages = conversation.messages
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _render(tokenizer, messages[:index], True, conversation.origin)
        after = (
            full_text
            if index == len(messages) - 1
            else _render(tokenizer, messages[: index + 1], False, conversation.origin)
        )
        if not (after.startswith(before) and full_text.startswith(after)):
            raise OneShotError(
                f"{conversation.origin}: the chat template renders the turns before an answer "
                "differently once the answer is there, so the loss mask is undefined; split it "
                "into single-turn rows, set model.system_turn to user if it moves the system "
                "turn, or give model.chat_template a template that does not."
            )
        spans.append((len(before), len(after)))
    return spans


def _within(span: tuple[int, int], start: int, end: int) -> bool:
    """Whether a token lies in an answer.

    Tokenizers that trim offsets give a token of white space alone an empty span at its end.
    """
    first, last = span
    return last <= end and (first >= start if last > first else first > start)


@dataclass(frozen=True)
class _Answer:
    """Positions of an answer's tokens, of which `stop` ends the turn if the template marks that."""

    members: list[int]
    stop: int | None


def _end_of_turn(
    text: str,
    offsets: Sequence[tuple[int, int]],
    marks: Sequence[int],
    behind: int,
    end: int,
) -> int | None:
    """Return the position of the token that ends an answer, or None if the template writes none.

    It is the last of `marks`, the answer's special and added tokens, if that stands behind the
    message with nothing but white space after it. Added tokens may stand inside a message too, such
    as runs of spaces or ``<think>``, and a white-space token does not tell an end from a new line.
    """
    visible = [p for p in marks if text[slice(*offsets[p])].strip()]
    if not visible:
        return None
    first, last = offsets[visible[-1]]
    return visible[-1] if first >= behind and not text[last:end].strip() else None


def _encode_answers(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[_Answer]]:
    """Return the token ids of a conversation, and where its answers lie among them."""
    text = _render(tokenizer, conversation.messages, False, conversation.origin)
    ids, offsets = _tokenize(tokenizer, text)
    _check_bos(tokenizer, ids, conversation.origin)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    contents = [m.content.strip() for m in conversation.messages if m.role == "assistant"]
    spans = _assistant_spans(tokenizer, conversation, text)
    answers = []
    for content, (start, end) in zip(contents, spans, strict=True):
        members = [p for p, span in enumerate(offsets) if _within(span, start, end)]
        if not members:
            raise OneShotError(
                f"{conversation.origin}: an assistant turn has no tokens of its own."
            )
        # The first match, because the mark behind it may hold the message's words ("end").
        found = text.find(content, start, end)
        # A template may rewrite the message; then only what follows a mark can tell.
        behind = start if found < 0 else found + len(content)
        marks = [p for p in members if ids[p] in special]
        answers.append(_Answer(members, _end_of_turn(text, offsets, marks, behind, end)))
    return ids, answers


def encode_conversation(
    tokenizer: Any,
    conversation: Conversation,
    *,
    max_length: int | None = None,
    for_generation: bool = False,
) -> Encoded:
    """Encode a conversation for training, or its prompt for generation.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        conversation: The turns. For generation everything after the last user turn is dropped.
        max_length: Longest allowed number of tokens. Training rows are cut at the end; prompts are
            never cut.
        for_generation: Encode the prompt with the template's generation prompt, without loss.

    Raises:
        OneShotError: if the template cannot render the turns, writes BOS twice in a row, if
            `max_length` cuts off every assistant token, or if a prompt is longer than `max_length`.
    """
    origin = conversation.origin
    if for_generation:
        text = _render(tokenizer, conversation.prompt.messages, True, origin)
        ids, _ = _tokenize(tokenizer, text)
        _check_bos(tokenizer, ids, origin)
        if max_length is not None and len(ids) > max_length:
            raise OneShotError(
                f"{origin}: the prompt has {len(ids)} tokens, more than max_length={max_length}; "
                "raise data.max_length or drop the row."
            )
        return Encoded(ids, [False] * len(ids))

    ids, answers = _encode_answers(tokenizer, conversation)
    mask = [False] * len(ids)
    for answer in answers:
        # Templates may write a newline after the end-of-turn token; the model never generates it.
        for position in answer.members:
            mask[position] = answer.stop is None or position <= answer.stop
    cut = 0
    if max_length is not None and len(ids) > max_length:
        cut = len(ids) - max_length
        ids, mask = ids[:max_length], mask[:max_length]
    if not any(mask):
        kind = f"max_length={max_length} cuts off every assistant token"
        message = f"{origin}: {kind}; raise data.max_length or shorten the prompt."
        raise RowError(message, origin, kind)
    return Encoded(ids, mask, cut)


def _check_bos(tokenizer: Any, ids: Sequence[int], origin: str) -> None:
    bos = tokenizer.bos_token_id
    if bos is not None and len(ids) > 1 and ids[0] == bos and ids[1] == bos:
        raise OneShotError(
            f"{origin}: the chat template adds a second BOS token ({tokenizer.bos_token}); remove "
            "one from the template."
        )


_PROBE = (Message("user", "a"), Message("assistant", "b"))


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that cannot encode conversations faithfully.

    Raises:
        OneShotError: without a chat template, if it is not a fast tokenizer, or if the template
            writes BOS twice into one single-turn conversation or its prompt.
    """
    if not tokenizer.chat_template:
        raise OneShotError(
            f"{name}: the tokenizer has no chat template; put chat_template.jinja beside it or "
            "give model.chat_template a file."
        )
    if not tokenizer.is_fast:
        raise OneShotError(f"{name}: needs a fast tokenizer (tokenizer.json) for the loss mask.")
    bos = tokenizer.bos_token_id
    endings = {tokenizer.eos_token_id, tokenizer.sep_token_id}
    for messages, generation in ((_PROBE, False), (_PROBE[:1], True)):
        ids, _ = _tokenize(tokenizer, _render(tokenizer, messages, generation, name))
        if bos is not None and bos not in endings and ids.count(bos) > 1:
            raise OneShotError(
                f"{name}: the chat template adds a second BOS token ({tokenizer.bos_token}); "
                "remove one from the template."
            )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise OneShotError(
            f"{name}: the tokenizer has neither a padding nor an end token; set one."
        )


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Return every token id that ends an answer.

    These are the template's end of turn, the EOS ids of the tokenizer and of the model's generation
    config, and the stop tokens of `ChatOptions`.
    """
    ids, (answer,) = _encode_answers(tokenizer, Conversation(_PROBE, origin="chat template"))
    stops = [] if answer.stop is None else [ids[answer.stop]]
    configured = getattr(generation_config, "eos_token_id", None)
    named = [tokenizer.get_vocab()[token] for token in _options(tokenizer).stop_tokens]
    for extra in (tokenizer.eos_token_id, configured, named):
        values = extra if isinstance(extra, (list, tuple)) else [extra]
        stops += [v for v in values if v is not None and v not in stops]
    return stops
