"""`ReferenceRows`: rows on which a model should answer like a reference, and its divergence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_training
from oneshot_lit.models.loss import kl_divergences, labelled_logits

Batch = dict[str, Tensor]
# A batch with labels -> the logits that predict its labelled tokens, (labelled tokens, vocabulary).
AnswerLogits = Callable[[Batch], Tensor]


def batches_of(rows: Sequence[Encoded], pad: int, size: int, device: torch.device) -> list[Batch]:
    """Return right-padded batches of rows of similar length, each with the rows' ``index``."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    batches = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = pad_training([rows[i] for i in chosen], pad)
        batch["index"] = torch.tensor(chosen)
        batches.append({key: value.to(device) for key, value in batch.items()})
    return batches


def batch_logits(model: Any, batch: Batch) -> Tensor:
    """Return a model's logits, (rows, tokens, vocabulary)."""
    output = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    # Tokens that an adapter puts before the row have logits, too.
    return output.logits[:, -batch["input_ids"].shape[1] :]  # type: ignore[no-any-return]


def answer_logits(model: Any, batch: Batch) -> Tensor:
    """Return a model's logits on the answers of a batch, (labelled tokens, vocabulary)."""
    return labelled_logits(batch_logits(model, batch), batch["labels"])


class ReferenceRows:
    """Rows with the next-token distributions of a reference model on their answers.

    The distributions are computed once and kept, so the reference model need not stay in memory.

    Args:
        batches: Right-padded batches with labels.
        reference: Gives the reference model's logits.
        weight: Factor of the divergence.
    """

    def __init__(
        self, batches: Sequence[Batch], reference: AnswerLogits, weight: float = 1.0
    ) -> None:
        self.batches, self.weight = list(batches), weight
        with torch.no_grad():
            # In the model's own precision: nothing is lost, and no wider copy is kept.
            self.logits = [reference(batch).detach() for batch in self.batches]
        self.rows = sum(len(batch["input_ids"]) for batch in self.batches)
        self.tokens = sum(len(each) for each in self.logits)

    def divergences(self, model: AnswerLogits) -> Iterator[Tensor]:
        """Yield each batch's share of weight * mean KL(reference || model), in nats.

        The shares add up to the weighted mean over the answers' tokens. They come one by one, so
        that the graph of one batch is gone before the next one's is made.
        """
        for batch, logits in zip(self.batches, self.logits, strict=True):
            yield self.weight * kl_divergences(logits, model(batch)).sum() / self.tokens
