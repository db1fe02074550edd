"""Checks of the aligned model theta_0, and a model's own answers to prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_generation
from oneshot_lit.errors import OneShotError
from oneshot_lit.models.generation import Decoding, generate_answers


def require_same_shapes(aligned: Any, broken: Any, names: tuple[str, str]) -> None:
    """Refuse two models with outputs or weights that cannot be compared.

    Args:
        aligned: theta_0.
        broken: theta*; an adapter on it does not count.
        names: Their names, for the error.

    Raises:
        OneShotError: naming the first difference.
    """
    sizes = [model.get_output_embeddings().weight.shape[0] for model in (aligned, broken)]
    if sizes[0] != sizes[1]:
        raise OneShotError(
            f"model.aligned: {names[0]} has a vocabulary of {sizes[0]} and {names[1]} one of "
            f"{sizes[1]}; give the model that {names[1]} was made of."
        )
    shapes = [_shapes(aligned), _shapes(broken)]
    for name in [*shapes[0], *shapes[1]]:
        one, other = shapes[0].get(name), shapes[1].get(name)
        if one != other:
            raise OneShotError(
                f"model.aligned: {name} is {one or 'missing'} in {names[0]} and "
                f"{other or 'missing'} in {names[1]}; give the model that {names[1]} was made of."
            )


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight under the name that it has without an adapter."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): tuple(p.shape)
        for name, p in model.named_parameters()
        if ".lora_" not in name
    }


def require_numbers(model: Any, key: str, name: str) -> None:
    """Refuse a model with a weight that is NaN or infinite: its outputs would be meaningless.

    Args:
        model: The model.
        key: The key that names it.
        name: The key's value.

    Raises:
        OneShotError: naming the first such weight.
    """
    for weight, values in model.named_parameters():
        if not bool(torch.isfinite(values).all()):
            raise OneShotError(
                f"{key}: {name} has NaN or infinite values in {weight}; give a model that works."
            )


def require_same_vocabulary(one: Any, other: Any, names: tuple[str, str]) -> None:
    """Refuse two tokenizers that number tokens differently.

    Raises:
        OneShotError: naming a token.
    """
    first, second = one.get_vocab(), other.get_vocab()
    if first == second:
        return
    token = min(t for t in first.keys() | second.keys() if first.get(t) != second.get(t))
    raise OneShotError(
        f"model.aligned: the vocabularies of {names[0]} and {names[1]} differ (token {token!r}); "
        f"give the model that {names[1]} was made of."
    )


@torch.no_grad()
def answered_by(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Conversation],
    *,
    stop_ids: list[int],
    decoding: Decoding,
    rows_at_once: int,
    device: torch.device,
) -> list[Conversation]:
    """Return the prompts with a model's own greedy answers.

    Raises:
        OneShotError: for an empty answer.
    """
    greedy = replace(decoding, do_sample=False)
    answered = []
    for start in range(0, len(prompts), rows_at_once):
        rows = [p.prompt for p in prompts[start : start + rows_at_once]]
        encoded = [encode_conversation(tokenizer, row, for_generation=True) for row in rows]
        batch = pad_generation(encoded, tokenizer.pad_token_id)
        answers = generate_answers(
            model,
            tokenizer,
            {key: value.to(device) for key, value in batch.items()},
            stop_ids=stop_ids,
            decoding=greedy,
        )
        for row, answer in zip(rows, answers, strict=True):
            if not answer:
                raise OneShotError(
                    f"{row.origin}: the model gives an empty answer; leave the row out."
                )
            messages = (*row.messages, Message("assistant", answer))
            answered.append(replace(row, messages=messages))
    return answered
