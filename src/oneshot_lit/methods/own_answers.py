"""A model's own answers to prompts, and rows completed with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.anchors import answered
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_generation
from oneshot_lit.models.generation import generate_answers


@torch.no_grad()
def own_answers(
    module: Any, model: Any, prompts: Sequence[Conversation], rows_at_once: int
) -> list[str]:
    """Return a model's greedy answer to each prompt.

    Args:
        module: Has the tokenizer, the stop tokens and the decoding.
        model: The model that answers.
        prompts: Conversations that end with a question.
        rows_at_once: Prompts in a batch.
    """
    greedy, tokenizer = replace(module.decoding, do_sample=False), module.tokenizer
    encoded = [encode_conversation(tokenizer, prompt, for_generation=True) for prompt in prompts]
    # Prompts of similar length together need little padding.
    order = sorted(range(len(encoded)), key=lambda n: -len(encoded[n].input_ids))
    answers: dict[int, str] = {}
    for start in range(0, len(order), rows_at_once):
        part = order[start : start + rows_at_once]
        batch = pad_generation([encoded[n] for n in part], tokenizer.pad_token_id)
        on_device = {key: value.to(module.device) for key, value in batch.items()}
        texts = generate_answers(
            model, tokenizer, on_device, stop_ids=module.stop_ids, decoding=greedy
        )
        answers |= zip(part, texts, strict=True)
    return [answers[n] for n in range(len(encoded))]


def with_own_answers(
    module: Any, model: Any, rows: Sequence[Conversation], rows_at_once: int
) -> list[Conversation]:
    """Return the rows; those without an answer get the model's own.

    Raises:
        RowError: naming a row to which the model's answer is empty.
    """
    prompts = [row.prompt for row in rows if row.response_text is None]
    answers = iter(own_answers(module, model, prompts, rows_at_once))
    completed = []
    for row in rows:
        if row.response_text is None:
            row = answered(row, next(answers))
        completed.append(row)
    return completed
