"""What a tokenizer's chat template writes around the turns: prompts, ends of turn, thoughts.

Nothing is assumed of a template: conversations that it renders show what it writes.
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
        template_arguments: Names and values for the template, such as ``enable_thinking``.
    """

    system_turn: SystemTurn = "template"
    stop_tokens: tuple[str, ...] = ()
    embedded: int | None = None
    template_arguments: tuple[tuple[str, Any], ...] = ()


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


def render(tokenizer: Any, messages: Sequence[Message], generation: bool, origin: str) -> str:
    """Return the text of a conversation, with the generation prompt if `generation`.

    Raises:
        RowError: naming `origin`, if the template refuses the turns.
    """
    turns = [{"role": m.role, "content": m.content} for m in messages]
    options = chat_options(tokenizer)
    has_system = turns[0]["role"] == "system"
    if has_system and len(turns) > 1 and options.system_turn == "user":
        system, user, *rest = turns
        turns = [{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    try:
        text = tokenizer.apply_chat_template(
            turns,
            tokenize=False,
            add_generation_prompt=generation,
            **dict(options.template_arguments),
        )
    except Exception as error:  # jinja raises whatever the template's author chose
        said = " ".join(str(error).split()).rstrip(".")
        advice = "; set model.system_turn to user" if has_system else ""
        reason = "the chat template refuses these turns"
        raise RowError(origin, reason, f": {said}{advice}.") from error
    return str(text)


# Stands for an answer. Digits, as a template may change the case, and escape or trim the rest.
_ANSWER = "80317715542906"


def prompt_text(tokenizer: Any, messages: Sequence[Message], origin: str) -> tuple[str, str]:
    """Return the text before an answer to these turns, and the text after it.

    It is the template's generation prompt, and whatever more the template always writes before the
    message of an assistant turn: a header, if it writes that without being asked for a generation
    prompt, or an empty thought. White space alone stays with the answer, so that words keep their
    space.

    Raises:
        RowError: if the template refuses the turns or leaves out the answer.
    """
    asked = render(tokenizer, messages, True, origin)
    text = render(tokenizer, [*messages, Message("assistant", _ANSWER)], False, origin)
    before, answer, after = text.rpartition(_ANSWER)
    if not answer:
        reason = "the chat template writes no assistant turn"
        raise RowError(origin, reason, "; give model.chat_template another.")
    longer = before.startswith(asked) and before[len(asked) :].strip()
    return (before if longer else asked), after


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


@lru_cache(maxsize=8)
def _answer_form(tokenizer: Any, template: str, options: ChatOptions, size: int) -> AnswerForm:
    prompt, after = prompt_text(tokenizer, [Message("user", "a")], "chat template")
    marks = {(f"{a}{name}{z}", f"{a}/{name}{z}") for a, name, z in _CLOSING.findall(template)}
    thoughts = tuple(sorted(marks))
    thinking = next((o for o, _ in thoughts if prompt.rstrip().endswith(o)), None)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    tokens = tokenizer(after, add_special_tokens=False, return_offsets_mapping=True)
    for token, (start, end) in zip(tokens["input_ids"], tokens["offset_mapping"], strict=True):
        # Some tokenizers have added tokens of nothing but white space.
        if token in special and after[start:end].strip():
            return AnswerForm(after[:end], token, None, thoughts, thinking)
    return AnswerForm(after, None, after.strip() or None, thoughts, thinking)


# <think>, <thinking>, <seed:think>, <reasoning>, [THINK] and their like.
_CLOSING = re.compile(r"(<|\[)/((?:\w+:)?(?:think|thought|reason)\w*)(>|\])", re.IGNORECASE)


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


def stop_token_ids(tokenizer: Any, generation_config: Any = None) -> list[int]:
    """Return every token id that ends an answer.

    These are the template's end of turn, the EOS ids of the tokenizer and of the model's generation
    config, and the stop tokens of `ChatOptions`; but none that the model cannot write.

    Raises:
        OneShotError: if the model does not embed the template's end of turn.
    """
    stop = answer_form(tokenizer).stop
    if (problem := beyond_embedding(tokenizer, [stop])) is not None:
        raise OneShotError(f"chat template: {problem}; it ends no answer. Give another template.")
    configured = getattr(generation_config, "eos_token_id", None)
    named = [tokenizer.get_vocab()[token] for token in chat_options(tokenizer).stop_tokens]
    stops: list[int] = []
    for extra in (stop, tokenizer.eos_token_id, configured, named):
        values = extra if isinstance(extra, (list, tuple)) else [extra]
        stops += [v for v in values if v is not None and v not in stops]
    return [s for s in stops if beyond_embedding(tokenizer, [s]) is None]


def end_of_turn_warning(tokenizer: Any, stop_ids: Sequence[int]) -> str | None:
    """Say what a template without an end of turn means; None if one token ends every answer."""
    form = answer_form(tokenizer)
    if form.stop is not None or chat_options(tokenizer).stop_tokens:
        return None
    named = ", ".join(f"'{tokenizer.convert_ids_to_tokens(i)}'" for i in stop_ids)
    unless = f" unless the model writes {named}" if named else ""
    if form.end_text is not None:
        return (
            f"the chat template ends a turn with '{form.end_text}', which is no special token of "
            "the tokenizer: answers are cut at this text, and the backend vllm generates on to "
            f"model.decoding.max_new_tokens{unless}; give model.chat_template one that ends turns "
            "with a special token"
        )
    return (
        "the chat template writes no end of turn, so training teaches none and answers run on to "
        f"model.decoding.max_new_tokens{unless}; metrics.json counts them under cut_outputs. Give "
        "model.chat_template one that ends turns with a special token"
    )
