"""Conversation -> token ids and loss mask: the one function used by training and evaluation.

A training row is built from the same prompts that the model gets at generation, so it learns to
continue exactly the tokens that it is later given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.models.chat_format import answer_form, beyond_embedding, prompt_text, render


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


# Put before a text, so that the tokenizer does not treat it as the start of the sequence.
_BEFORE = ("\n", "a", ".", " ")


def _tokenize_behind(tokenizer: Any, text: str, origin: str) -> tuple[list[int], list[int]]:
    """Tokenise a text that follows other text; returns the same as `_tokenize`.

    Raises:
        OneShotError: if the tokenizer merges its start with every text in `_BEFORE`.
    """
    for before in _BEFORE:
        alone, _ = _tokenize(tokenizer, before)
        ids, ends = _tokenize(tokenizer, before + text)
        if ids[: len(alone)] == alone:
            return ids[len(alone) :], [end - len(before) for end in ends[len(alone) :]]
    raise OneShotError(
        f"{origin}: the tokenizer cannot separate an answer from its prompt; give "
        "model.chat_template a template with a special token before each answer."
    )


class _Row:
    """The tokens of a text that grows at its end; tokens once added never change.

    A tokenizer may merge the end of a prompt and the start of its answer into one token, such as
    two newlines. At generation the model gets only the prompt, so in that case the answer is
    tokenised separately.

    Args:
        tokenizer: A fast tokenizer.
        origin: File and row, for errors.
    """

    def __init__(self, tokenizer: Any, origin: str) -> None:
        self.tokenizer, self.origin = tokenizer, origin
        self.ids: list[int] = []
        # Where each token ends in the text.
        self.ends: list[int] = []
        # Tokens and characters before the last part that was tokenised separately.
        self._part = (0, 0)
        # All characters.
        self._size = 0

    def grow(self, text: str) -> None:
        """Extend the row to a longer text that starts with the present one."""
        tokens, letters = self._part
        ids, ends = self._tokens(text, letters)
        if ids[: len(self.ids) - tokens] != self.ids[tokens:]:
            tokens, letters = self._part = len(self.ids), self._size
            ids, ends = self._tokens(text, letters)
        self.ids[tokens:], self.ends[tokens:] = ids, [letters + end for end in ends]
        self._size = len(text)

    def _tokens(self, text: str, start: int) -> tuple[list[int], list[int]]:
        if start == 0:
            return _tokenize(self.tokenizer, text)
        return _tokenize_behind(self.tokenizer, text[start:], self.origin)


@dataclass(frozen=True)
class _Answer:
    """An answer in a rendered conversation.

    Attributes:
        number: Its turn, from 0.
        prompt: The text that it follows.
        after: What the template writes after it when it is the last turn.
    """

    number: int
    prompt: str
    after: str


def _answers(tokenizer: Any, conversation: Conversation) -> list[_Answer]:
    messages, origin = conversation.messages, conversation.origin
    return [
        _Answer(i, *prompt_text(tokenizer, messages[:i], origin))
        for i, message in enumerate(messages)
        if message.role == "assistant"
    ]


def _learned_part(
    tokenizer: Any, conversation: Conversation, text: str, answer: _Answer
) -> tuple[int, int]:
    """Return where an answer's message ends in the text of its row, and where its turn ends.

    Raises:
        OneShotError: if the row's text differs from the prompt that the model gets, and its answer.
    """
    origin, number = conversation.origin, answer.number
    messages = conversation.messages[: number + 1]
    last = number == len(conversation.messages) - 1
    whole = text if last else render(tokenizer, messages, False, origin)
    if not (whole.startswith(answer.prompt) and whole.endswith(answer.after)):
        raise OneShotError(
            f"{origin}: the chat template writes turn {number + 1} differently once its answer is "
            "there than when it is asked for, so that nothing would be learned of the answer as "
            "given; take any thoughts out of the answer, set model.system_turn to user if it "
            "moves the system turn, or give model.chat_template a template that does not."
        )
    message = len(whole) - len(answer.after)
    turn = message + len(answer_form(tokenizer).end)
    if text[:message] != whole[:message] or text[message:turn] != answer_form(tokenizer).end:
        raise OneShotError(
            f"{origin}: the chat template renders the turns before an answer differently once the "
            f"answer is there, or other turns behind it: so it does with turn {number + 1}. Split "
            "the row into single-turn rows, give all answers but the last the weight 0, or give "
            "model.chat_template a template that does not."
        )
    return message, turn


def _encode_row(tokenizer: Any, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Return the token ids of a conversation and its loss mask."""
    origin = conversation.origin
    text = render(tokenizer, conversation.messages, False, origin)
    row, stop = _Row(tokenizer, origin), answer_form(tokenizer).stop
    spans: list[tuple[int, int, int]] = []
    for answer in _answers(tokenizer, conversation):
        learned = conversation.messages[answer.number].learned
        if learned:
            ends = _learned_part(tokenizer, conversation, text, answer)
        # The template may write an answer that is only context in any way.
        if text.startswith(answer.prompt):
            row.grow(answer.prompt)
        if learned:
            spans.append((len(row.ids), *ends))
    row.grow(text)
    mask = [False] * len(row.ids)
    for first, message, turn in spans:
        position = first
        while position < len(row.ids) and row.ends[position] <= turn:
            mask[position] = True
            position += 1
            # The model generates nothing after the end of turn, not even a newline.
            if row.ids[position - 1] == stop and row.ends[position - 1] > message:
                break
        if position == first:
            raise OneShotError(f"{origin}: an assistant turn has no tokens of its own.")
    return row.ids, mask


def _encode_prompt(tokenizer: Any, conversation: Conversation) -> list[int]:
    """Return the token ids of the prompt for an answer to the last turn."""
    row = _Row(tokenizer, conversation.origin)
    text, _ = prompt_text(tokenizer, conversation.messages, conversation.origin)
    for answer in _answers(tokenizer, conversation):
        if text.startswith(answer.prompt):
            row.grow(answer.prompt)
    row.grow(text)
    return row.ids


def _check(tokenizer: Any, conversation: Conversation, ids: Sequence[int]) -> None:
    """Refuse tokens that the model cannot take, and rows with keys that would be lost."""
    origin, bos = conversation.origin, tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        raise OneShotError(
            f"{origin}: the chat template adds a second BOS token ({tokenizer.bos_token}); remove "
            "one from the template."
        )
    if (problem := beyond_embedding(tokenizer, ids)) is not None:
        reason = "holds a token that the model does not embed"
        raise RowError(origin, reason, f": {problem}; drop the row or fix the tokenizer.")
    keys = sorted({key for m in conversation.messages for key in m.extra})
    if not keys:
        return
    plain, full = (
        render(tokenizer, conversation.messages, False, origin, extra=extra)
        for extra in (False, True)
    )
    if plain != full:
        reason = "the chat template would write keys of the turns that are not supported"
        raise RowError(origin, reason, f" ({', '.join(keys)}); remove them.")


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
        OneShotError: if the template cannot render the turns, renders a prompt differently once its
            answer is there, writes BOS twice at the start or a key that is not supported; for a
            token that the model does not embed; if `max_length` cuts off every token with loss, or
            if a prompt is longer than `max_length`.
    """
    origin = conversation.origin
    if for_generation:
        conversation = conversation.prompt
        ids = _encode_prompt(tokenizer, conversation)
        _check(tokenizer, conversation, ids)
        if max_length is not None and len(ids) > max_length:
            raise OneShotError(
                f"{origin}: the prompt has {len(ids)} tokens, more than max_length={max_length}; "
                "raise data.max_length or drop the row."
            )
        return Encoded(ids, [False] * len(ids))

    ids, mask = _encode_row(tokenizer, conversation)
    _check(tokenizer, conversation, ids)
    cut = 0
    if max_length is not None and len(ids) > max_length:
        cut = len(ids) - max_length
        ids, mask = ids[:max_length], mask[:max_length]
    if not any(mask):
        reason = f"max_length={max_length} cuts off every assistant token"
        raise RowError(origin, reason, "; raise data.max_length or shorten the prompt.")
    return Encoded(ids, mask, cut)


_PROBE = Conversation((Message("user", "a"), Message("assistant", "b")))


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
    probe = Conversation(_PROBE.messages, origin=name)
    for messages, generation in ((probe.messages, False), (probe.prompt.messages, True)):
        ids, _ = _tokenize(tokenizer, render(tokenizer, messages, generation, name))
        _check(tokenizer, probe, ids)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token_id is None:
        raise OneShotError(
            f"{name}: the tokenizer has neither a padding nor an end token; set one."
        )


def rows_with_special_tokens(rows: Iterable[Conversation], tokenizer: Any) -> list[Conversation]:
    """Return the conversations whose text contains a special token, which may end or begin a turn.

    A tokenizer cannot tell a token that the template wrote from the same characters in a text.
    """
    if getattr(tokenizer, "split_special_tokens", False):
        return []
    added = tokenizer.added_tokens_decoder.values()
    tokens = {*tokenizer.all_special_tokens, *(str(t) for t in added if t.special)} - {""}
    if not tokens:
        return []
    pattern = re.compile("|".join(map(re.escape, sorted(tokens))))
    # A repeated row, such as an instance, counts once.
    distinct = {row.origin: row for row in rows}.values()
    return [row for row in distinct if any(pattern.search(m.content) for m in row.messages)]
