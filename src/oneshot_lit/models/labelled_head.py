"""The language head on labelled positions only.

A step needs logits only where a token carries loss. With a vocabulary of 50,000 or more they are
the largest tensors of a step, and the head is a fifth of the arithmetic of a small model.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from oneshot_lit.models.loss import labelled_logits


@contextmanager
def head_on_labelled(model: Any, labels: Tensor) -> Iterator[None]:
    """Let a model's forward pass return the logits that predict labelled tokens, and no others.

    They have the shape (labelled tokens, vocabulary), in the order of `token_losses`. What the
    model does behind its head, such as a soft cap, still happens.

    Args:
        model: A causal language model of transformers or PEFT, under any strategy.
        labels: (rows, tokens); `IGNORE_INDEX` where a token carries no loss.
    """

    def select(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = inputs
        return (labelled_logits(hidden, labels), *others)

    handle = model.get_output_embeddings().register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
