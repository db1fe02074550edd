"""`ReferenceRows`: rows on which a model shall answer as another, and how far off it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_training
from oneshot_lit.models.loss import IGNORE_INDEX

Batch = dict[str, Tensor]
# A batch with labels -> the logits that predict its labelled tokens, (labelled tokens, vocabulary).
AnswerLogits = Callable[[Batch], Tensor]


def labelled_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logits that predict a labelled token, (labelled tokens, vocabulary).

    Args:
        logits: (rows, tokens, vocabulary).
        labels: (rows, tokens); `IGNORE_INDEX` where a token carries no loss.
    """
    return logits[:, :-1][labels[:, 1:] != IGNORE_INDEX]


def example_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return each row's mean next-token loss over its own labelled tokens, (rows,), in nats.

    Args:
        logits: (rows, tokens, vocabulary); computed on in float32 or wider.
        labels: (rows, tokens); `IGNORE_INDEX` where a token carries no loss.
    """
    wide = logits if logits.dtype == torch.float64 else logits.float()
    targets = labels[:, 1:]
    each = torch.nn.functional.cross_entropy(
        wide[:, :-1].mT, targets, ignore_index=IGNORE_INDEX, reduction="none"
    )
    kept = targets != IGNORE_INDEX
    return (each * kept).sum(1) / kept.sum(1).clamp_min(1)


def batches_of(rows: Sequence[Encoded], pad: int, size: int, device: torch.device) -> list[Batch]:
    """Return right-padded batches of rows of like length, each with the rows' ``index``."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids))
    found = []
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        batch = pad_training([rows[i] for i in chosen], pad)
        batch["index"] = torch.tensor(chosen)
        found.append({key: value.to(device) for key, value in batch.items()})
    return found


class ReferenceRows:
    """Rows with the next-token distributions that a reference model has on their answers.

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
        self.tokens = sum(len(each) for each in self.logits)

    def divergences(self, model: AnswerLogits) -> list[Tensor]:
        """Return each batch's share of weight * mean KL(reference || model); they add up to it.

        A list, so that the graph of one batch is gone before the next one's is made.
        """
        return [self.divergence(n, model) for n in range(len(self.batches))]

    def divergence(self, number: int, model: AnswerLogits) -> Tensor:
        """Return one batch's share of the weighted mean over the answers' tokens, (), in nats."""
        p = _wide(self.logits[number]).log_softmax(-1)
        q = _wide(model(self.batches[number])).log_softmax(-1)
        return self.weight * (p.exp() * (p - q)).sum() / self.tokens


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()
