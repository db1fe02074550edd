"""What a tokenizer's chat template writes around the turns: prompts, ends of turn, thoughts.

Nothing is assumed of a template. Conversations that differ in one place show what it writes there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from oneshot_lit.conversation import Message
from oneshot_lit.errors import OneShotError, RowError

SystemTurn = Literal["template", "user"]


@dataclass(frozen=True)
class ChatOptions:
    """What a family's chat format needs beyond its template; see `set_chat_options`.

    Attributes:
        system_turn: ``template`` hands a system turn to the template; ``user`` puts its text before
            the first user turn, for templates that have no system role or move it about.
        stop_tokens: Further tokens that end an answer.
        embedded: Rows of the model's embedding, where known; no larger token id may be used.
    """

    system_turn: SystemTurn = "template"
    stop_tokens: tuple[str, ...] = ()
    embedded: int | None = None


def set_chat_options(tokenizer: Any, options: ChatOptions, name: str) -> None:
    """Let a tokenizer be used with these options, wherever conversations are encoded with it.

    Raises:
        OneShotError: for a stop token that the tokenizer does not have as one token, or a stop or
            padding token that the model does not embed.
    """
    known = tokenizer.get_vocab()
    for token in options.stop_tokens:
        if token not in known:
            raise OneShotError(
                f"model.stop_tokens: '{token}' is no token of {name}; "
                "see its tokenizer_config.json for the names."
            )
    tokenizer.chat_options = options
    for what, used in (
        ("model.stop_tokens", [known[token] for token in options.stop_tokens]),
        (f"{name}: padding", [tokenizer.pad_token_id]),
    ):
        if (problem := beyond_embedding(tokenizer, used)) is not None:
            raise OneShotError(f"{what}: {problem}; name another token.")


def chat_options(tokenizer: Any) -> ChatOptions:
    """Return the options set for a tokenizer, or the defaults."""
    return getattr(tokenizer, "chat_options", None) or ChatOptions()


def beyond_embedding(tokenizer: Any, ids: Sequence[int | None]) -> str | None:
    """Name the first token that the model has no embedding of; None if it has all.

    A tokenizer may have more tokens than the model, as long as nothing uses them.
    """
    rows = chat_options(tokenizer).embedded
    for token in ids:
        if rows is not None and token is not None and token >= rows:
            name = tokenizer.convert_ids_to_tokens(token)
            return f"the token '{name}' has the id {token}, and the model embeds only {rows} tokens"
    return None


# --------------------------------------------------------------------- rendering


def _system_into_user(turns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the text of a system turn before that of the first user turn, a blank line between."""
    if len(turns) < 2 or turns[0]["role"] != "system":
        return turns
    system, user, *rest = turns
    return [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]


def render(
    tokenizer: Any,
    messages: Sequence[Message],
    generation: bool,
    origin: str,
    *,
    extra: bool = False,
) -> str:
    """Return the text of a conversation.

    Args:
        tokenizer: Holds the template.
        messages: The turns.
        generation: Ask the template for its generation prompt.
        origin: File and row, for errors.
        extra: Give the template also the keys of the turns that nothing here reads.

    Raises:
        RowError: if the template refuses the turns.
    """
    turns = [{"role": m.role, "content": m.content, **(m.extra if extra else {})} for m in messages]
    if chat_options(tokenizer).system_turn == "user":
        turns = _system_into_user(turns)
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=generation
        )
    except Exception as error:  # jinja raises whatever the template's author chose
        said = " ".join(str(error).split()).rstrip(".")
        advice = "; set model.system_turn to user" if turns[0]["role"] == "system" else ""
        reason = "the chat template refuses these turns"
        raise RowError(origin, reason, f": {said}{advice}.") from error
    return str(text)


# Stands for an answer. Digits, as a template may change the case, and escape or trim the rest.
_ANSWER = "80317715542906"


def around_answer(tokenizer: Any, messages: Sequence[Message], origin: str) -> tuple[str, str]:
    """Return what the template writes before and after an answer to these turns.

    Raises:
        RowError: if the template refuses the turns or leaves out the answer.
    """
    text = render(tokenizer, [*messages, Message("assistant", _ANSWER)], False, origin)
    before, answer, after = text.rpartition(_ANSWER)
    if not answer:
        reason = "the chat template writes no assistant turn"
        raise RowError(origin, reason, "; give model.chat_template another.")
    return before, after


def prompt_text(tokenizer: Any, messages: Sequence[Message], origin: str) -> tuple[str, str]:
    """Return the text before an answer to these turns, and the text after it.

    It is the template's generation prompt, and whatever more the template always writes before the
    message of an assistant turn: a header, if it writes that without being asked for a generation
    prompt, or an empty thought. White space alone stays with the answer, so that words keep their
    space.
    """
    asked = render(tokenizer, messages, True, origin)
    before, after = around_answer(tokenizer, messages, origin)
    longer = before.startswith(asked) and before[len(asked) :].strip()
    return (before if longer else asked), after


# ------------------------------------------------------------------ facts of a template


@dataclass(frozen=True)
class AnswerForm:
    """How answers end, and which parts of them are hidden, by a template.

    Attributes:
        end: What the template writes after an answer, up to and with the token that ends it.
        stop: The id of that token; None if the template marks no end, or with several tokens.
        end_text: The mark of several tokens, if there is one.
        thoughts: Opening and closing mark of the thoughts that the template keeps from the user.
        thinking: The opening mark that every prompt ends with, unclosed, if there is one.
    """

    end: str = ""
    stop: int | None = None
    end_text: str | None = None
    thoughts: tuple[tuple[str, str], ...] = ()
    thinking: str | None = None


def answer_form(tokenizer: Any) -> AnswerForm:
    """Return how answers end under a tokenizer's template.

    Raises:
        RowError: if the template cannot render a question and its answer.
    """
    if not tokenizer.chat_template:
        return AnswerForm()
    # The template and the tokens may change.
    template = tokenizer.get_chat_template()
    return _answer_form(tokenizer, template, chat_options(tokenizer), len(tokenizer))


_QUESTION = (Message("user", "a"),)
_NAME = "chat template"


@lru_cache(maxsize=8)
def _answer_form(tokenizer: Any, template: str, options: ChatOptions, size: int) -> AnswerForm:
    prompt, after = prompt_text(tokenizer, _QUESTION, _NAME)
    thoughts = _thoughts(template)
    thinking = next((o for o, _ in thoughts if prompt.rstrip().endswith(o)), None)
    parts = _own_ends(tokenizer, after)
    for own, shared in parts:
        stop = _stop(tokenizer, after, len(own), shared)
        if stop is not None:
            return AnswerForm(after[: stop[1]], stop[0], None, thoughts, thinking)
    own, shared = parts[-1]
    if shared:
        # Headers in plain words may begin alike, too, but they start on a line of their own.
        own = own[: own.rfind("\n") + 1] or own
    return AnswerForm(own, None, own.strip() or None, thoughts, thinking)


def _own_ends(tokenizer: Any, after: str) -> list[tuple[str, bool]]:
    """Return candidates for the text that ends an answer, each with whether other text follows.

    Some templates write the header of the next answer whether asked or not. What they write when a
    user turn follows differs from there on, or a little later if headers begin alike.
    """
    turns = [*_QUESTION, Message("assistant", _ANSWER), *_QUESTION]
    try:
        following = render(tokenizer, turns, False, _NAME).rpartition(_ANSWER)[2]
    except RowError:
        # Some templates take one question only.
        following = after
    if following.startswith(after):
        return [(after, False)]
    size = next(i for i, (x, y) in enumerate(zip(after, following + "\0", strict=False)) if x != y)
    ends = [(after[:size], True)]
    asked, unasked = (render(tokenizer, turns[:2], flag, _NAME) for flag in (True, False))
    # Where no header is written unasked, the last answer may end differently from earlier ones.
    return ends if asked == unasked else [*ends, (after, False)]


def _stop(tokenizer: Any, after: str, size: int, shared: bool) -> tuple[int, int] | None:
    """Return the token that ends an answer, and where it ends in the text after the answer.

    It is the first special or added token within the first `size` letters of that text.
    """
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    for token, (start, end) in _tokens(tokenizer, after):
        if end <= size and token in special and after[start:end].strip():
            # Added tokens such as <think> may be in any text, but no words follow an end.
            rest = _tokens(tokenizer, after[end:size])
            words = any(t not in special and after[end:][slice(*p)].strip() for t, p in rest)
            return None if words and not shared else (token, end)
    return None


def _tokens(tokenizer: Any, text: str) -> list[tuple[int, tuple[int, int]]]:
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return list(zip(encoded["input_ids"], encoded["offset_mapping"], strict=True))


# <think>, <thinking>, <seed:think>, <reasoning>, [THINK] and their like.
_CLOSING = re.compile(r"(<|\[)/((?:\w+:)?(?:think|thought|reason)\w*)(>|\])", re.IGNORECASE)


def _thoughts(template: str) -> tuple[tuple[str, str], ...]:
    """Return the marks of thoughts that a template knows of."""
    marks = {(f"{a}{name}{z}", f"{a}/{name}{z}") for a, name, z in _CLOSING.findall(template)}
    return tuple(sorted(marks))


def visible_text(text: str, form: AnswerForm, thinking: str | None = None) -> str:
    """Return a text without thoughts; an unfinished thought takes all text after it along.

    Args:
        text: An answer or a reference.
        form: Has the marks of thoughts.
        thinking: The opening mark that the prompt ended with, if it did.
    """
    for opening, closing in form.thoughts:
        first = text.find(closing)
        # Some models never write the opening mark.
        if thinking == opening or (first >= 0 and opening not in text[:first]):
            text = opening + text
        text = re.sub(f"{re.escape(opening)}.*?{re.escape(closing)}", "", text, flags=re.DOTALL)
        text = text.partition(opening)[0]
    return text.strip()
