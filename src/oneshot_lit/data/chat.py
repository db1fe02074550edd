"""Conversation -> token ids and loss mask: the one function used by training and evaluation.

A training row is built from the same prompts that the model gets at generation, so it learns to
continue exactly the tokens that it is later given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.models.chat_format import answer_form, beyond_embedding, prompt_text, render


class TurnsDifferError(RowError):
    """A row that its template renders differently from its prompts and answers."""


@dataclass(frozen=True)
class Encoded:
    """Token ids of a conversation and, for each, whether it carries loss.

    Attributes:
        input_ids: Token ids, length ``tokens``.
        loss_mask: True on the tokens of answers that are learned and their end-of-turn token; all
            False for a prompt.
        cut: How many tokens of the conversation `max_length` dropped from its end, 0 where the row
            is whole; a prompt is never cut. It counts tokens without loss too, such as a newline
            that the template writes after the end of turn.
        token_weights: How much each token counts in the loss, length ``tokens``; None counts all
            tokens equally. Written by transforms of the data.
    """

    input_ids: list[int]
    loss_mask: list[bool]
    cut: int = 0
    token_weights: list[float] | None = None


def _tokenize(tokenizer: Any, text: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a text, and where each token ends in it."""
    # The template already writes BOS, so the tokenizer must not add its own.
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(encoded["input_ids"]), [end for _, end in encoded["offset_mapping"]]


def _encode_row(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation and its loss mask."""
    messages, origin = conversation.messages, conversation.origin
    text = render(tokenizer, messages, False, origin)
    ids, ends = _tokenize(tokenizer, text)
    mask = [False] * len(ids)
    for number, turn in enumerate(messages):
        if not turn.learned:
            continue
        prompt, after = prompt_text(tokenizer, messages[:number], origin)
        turn_end = _turn_end(tokenizer, conversation, number, text, prompt, after)
        prompt_ids, prompt_ends = _tokenize(tokenizer, prompt)
        first = len(prompt_ids)
        if ids[:first] != prompt_ids:
            # The tokenizer merges the end of the prompt with the start of the answer, such as two
            # newlines. The model gets the prompt alone, so the rest is tokenised alone, too.
            rest, rest_ends = _tokenize(tokenizer, text[len(prompt) :])
            alone = prompt_ids + rest
            if any(mask) or tokenizer.decode(alone) != tokenizer.decode(ids):
                reason = "the tokenizer merges the end of a prompt with the start of its answer"
                advice = f" (turn {number + 1}); let the answer start without white space."
                raise RowError(origin, reason, advice)
            ids, ends = alone, prompt_ends + [len(prompt) + end for end in rest_ends]
            mask = [False] * len(ids)
        if first == len(ids) or ends[first] > turn_end:
            raise OneShotError(f"{origin}: an assistant turn has no tokens of its own.")
        for position in range(first, len(ids)):
            if ends[position] > turn_end:
                break
            mask[position] = True
    return ids, mask


def _turn_end(
    tokenizer: Any, conversation: Conversation, number: int, text: str, prompt: str, after: str
) -> int:
    """Return where a turn ends in the text of its row: with its end-of-turn token.

    Raises:
        TurnsDifferError: if the row's text differs from the model's prompt and its answer.
    """
    messages, origin = conversation.messages[: number + 1], conversation.origin
    last = len(messages) == len(conversation.messages)
    whole = text if last else render(tokenizer, messages, False, origin)
    message_end, end = len(whole) - len(after), answer_form(tokenizer).end
    as_asked = whole.startswith(prompt) and whole.endswith(after)
    if as_asked and text.startswith(whole[:message_end] + end):
        return message_end + len(end)
    raise TurnsDifferError(
        origin,
        "the chat template renders a turn differently once its answer is there, or other turns "
        "behind it",
        f" (turn {number + 1}); take any thoughts out of the answer, set model.system_turn to user "
        "if it moves the system turn, or give model.chat_template a template that does not.",
    )


def _check(tokenizer: Any, origin: str, ids: Sequence[int]) -> None:
    """Refuse tokens that the model cannot take."""
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise OneShotError(
            f"{origin}: the chat template adds a second BOS token ({tokenizer.bos_token}); remove "
            "one from the template."
        )
    if (problem := beyond_embedding(tokenizer, ids)) is not None:
        reason = "holds a token that the model does not embed"
        raise RowError(origin, reason, f": {problem}; drop the row or fix the tokenizer.")


def encode_conversation(
    tokenizer: Any,
    conversation: Conversation,
    *,
    max_length: int | None = None,
    for_generation: bool = False,
) -> Encoded:
    """Encode a conversation for training, or its prompt for generation.

    The tokens of a prompt are the first tokens of its row, up to the answer.

    Args:
        tokenizer: A fast Hugging Face tokenizer with a chat template.
        conversation: The turns. For generation everything after the last user turn is dropped.
        max_length: Longest allowed number of tokens. Training rows are cut at the end; prompts are
            never cut.
        for_generation: Encode the prompt up to where its answer begins, without loss.

    Raises:
        RowError: if the template cannot render the turns, or renders a prompt differently once its
            answer is there; for a token that the model does not embed; if `max_length` cuts off
            every token with loss.
        OneShotError: if the template writes BOS twice, or a prompt is longer than `max_length`.
    """
    origin = conversation.origin
    if for_generation:
        text, _ = prompt_text(tokenizer, conversation.prompt.messages, origin)
        ids, _ = _tokenize(tokenizer, text)
        _check(tokenizer, origin, ids)
        if max_length is not None and len(ids) > max_length:
            raise OneShotError(
                f"{origin}: the prompt has {len(ids)} tokens, more than max_length={max_length}; "
                "raise data.max_length or drop the row."
            )
        return Encoded(ids, [False] * len(ids))

    ids, mask = _encode_row(tokenizer, conversation)
    _check(tokenizer, origin, ids)
    cut = 0
    if max_length is not None and len(ids) > max_length:
        cut = len(ids) - max_length
        ids, mask = ids[:max_length], mask[:max_length]
    if not any(mask):
        reason = f"max_length={max_length} cuts off every assistant token"
        raise RowError(origin, reason, "; raise data.max_length or shorten the prompt.")
    return Encoded(ids, mask, cut)


def encode_training(
    tokenizer: Any, conversation: Conversation, max_length: int | None = None
) -> list[tuple[Conversation, Encoded]]:
    """Encode a conversation for training: as one row, or as one row for each answer.

    Some templates drop the thoughts of earlier turns, or write earlier answers differently, so that
    no single row holds each answer behind the prompt that the model gets for it. Each answer is
    then learned in a row of its own, which ends with it.

    Raises:
        RowError: as `encode_conversation`.
    """
    try:
        return [(conversation, encode_conversation(tokenizer, conversation, max_length=max_length))]
    except TurnsDifferError:
        messages = conversation.messages
        learned = [number for number, turn in enumerate(messages) if turn.learned]
        if len(learned) < 2:
            raise
    context = [replace(turn, weight=0) if turn.learned else turn for turn in messages]
    parts = [replace(conversation, messages=(*context[:n], messages[n])) for n in learned]
    return [(p, encode_conversation(tokenizer, p, max_length=max_length)) for p in parts]


_PROBE = (Message("user", "a"), Message("assistant", "b"))


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse a tokenizer that cannot encode conversations faithfully.

    Raises:
        OneShotError: without a chat template, if it is not a fast tokenizer, or if the template
            writes BOS twice at the start of a conversation or its prompt.
    """
    if not tokenizer.chat_template:
        raise OneShotError(
            f"{name}: the tokenizer has no chat template; put chat_template.jinja beside it or "
            "give model.chat_template a file."
        )
    if not tokenizer.is_fast:
        raise OneShotError(f"{name}: needs a fast tokenizer (tokenizer.json) for the loss mask.")
    for messages, generation in ((_PROBE, False), (_PROBE[:1], True)):
        _check(
            tokenizer, name, _tokenize(tokenizer, render(tokenizer, messages, generation, name))[0]
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise OneShotError(
            f"{name}: the tokenizer has neither a padding nor an end token; set one."
        )
