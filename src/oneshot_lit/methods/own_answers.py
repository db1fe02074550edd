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
    greedy = replace(module.decoding, do_sample=False)
    answers: list[str] = []
    for start in range(0, len(prompts), rows_at_once):
        encoded = [
            encode_conversation(module.tokenizer, prompt, for_generation=True)
            for prompt in prompts[start : start + rows_at_once]
        ]
        batch = pad_generation(encoded, module.tokenizer.pad_token_id)
        answers += generate_answers(
            model,
            module.tokenizer,
            {key: value.to(module.device) for key, value in batch.items()},
            stop_ids=module.stop_ids,
            decoding=greedy,
        )
    return answers


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
