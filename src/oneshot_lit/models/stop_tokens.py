"""Which tokens end an answer, and a warning for a chat template that writes none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.chat_format import answer_form, beyond_embedding, chat_options


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
