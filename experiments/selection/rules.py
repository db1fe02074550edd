"""Cheap alternatives to the bilevel selection: each scores every candidate, higher is better.

None of them trains on a candidate. Their cost is counted in rows of forward and backward passes, to
compare it with selections that do train.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from experiments.selection.example_gradients import (
    Factors,
    example_factors,
    inner_products,
    require_examples,
)
from experiments.selection.pictures import GENERAL
from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.reference import Batch, ReferenceRows
from oneshot_lit.models.loss import labelled_logits, row_losses
from oneshot_lit.spectral import gradient_svd, subspace_overlap
from oneshot_lit.spectral.recorder import layers_of


@dataclass
class Evidence:
    """What a rule may use; all of it is computed at the broken model theta*.

    Attributes:
        pool: The candidates.
        batches: Their right-padded batches, with ``index``.
        model: theta*; a Hugging Face causal language model without an adapter.
        upper: The terms of the upper objective f.
        seed: The seed of rules that draw.
        overlap_k: Number of leading directions in the subspace overlap.
        leading: Leading directions of the mean gradient by weight, if they are known.
        forwards: Rows of forward passes so far.
        backwards: Rows of backward passes so far.
    """

    pool: Sequence[Conversation]
    batches: Sequence[Batch]
    model: Any
    upper: Sequence[ReferenceRows] = ()
    seed: int = 0
    overlap_k: int = 8
    leading: dict[str, Tensor] | None = None
    forwards: int = field(default=0, init=False)
    backwards: int = field(default=0, init=False)

    def losses(self, batch: Batch) -> Tensor:
        """Return the loss of each candidate of a batch, (rows,)."""
        self.forwards += len(batch["index"])
        return row_losses(self._logits(batch), batch["labels"])

    def weights(self) -> dict[str, nn.Parameter]:
        """Return the two-dimensional weights, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.ndim == 2}

    def answer_logits(self, batch: Batch) -> Tensor:
        """Return the logits on the answers of a batch, (labelled tokens, vocabulary)."""
        return labelled_logits(self._logits(batch), batch["labels"])

    def factors(self, batch: Batch, weights: Mapping[str, nn.Parameter]) -> Factors:
        """Return the factors of the gradient of each candidate's loss."""
        embeddings = [m.weight for m in self.model.modules() if isinstance(m, nn.Embedding)]
        with example_factors(self.model, weights) as factors:
            # Back to the embeddings, of tokens and positions, so that every layer's output has a
            # gradient; no other weight gets one.
            torch.autograd.grad(self.losses(batch).sum(), embeddings, allow_unused=True)
        self.backwards += len(batch["index"])
        require_examples(factors, len(batch["index"]))
        self._require_all_seen({name for name, parts in factors.items() if parts}, batch)
        return factors

    def _require_all_seen(self, seen: set[str], batch: Batch) -> None:
        """Refuse a model with weights in other layers: their part of the gradient would be missing.

        Raises:
            OneShotError: naming the first such matrix, or stack of matrices as experts have.
        """
        hidden = {
            name: p for name, p in self.model.named_parameters() if p.ndim > 1 and name not in seen
        }
        if not hidden:
            return
        loss = row_losses(self._logits(batch), batch["labels"]).sum()
        parts = torch.autograd.grad(loss, list(hidden.values()), allow_unused=True)
        for name, part in zip(hidden, parts, strict=True):
            if part is not None:
                raise OneShotError(
                    f"model.model_name_or_path: {name} is in no plain linear or embedding layer, "
                    "so the candidates' gradients cannot be told apart; choose another model.rule."
                )

    def upper_gradient(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the gradient of f, by name."""
        total = {name: torch.zeros_like(p) for name, p in weights.items()}
        for term in self.upper:
            for share in term.divergences(self.answer_logits):
                _add(total, _gradients(share, weights))
            self.forwards += term.rows
            self.backwards += term.rows
        return total

    def mean_gradient(self, weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
        """Return the gradient of the candidates' mean loss, by name."""
        total = {name: torch.zeros_like(p) for name, p in weights.items()}
        for batch in self.batches:
            loss = self.losses(batch).sum() / len(self.pool)
            _add(total, _gradients(loss, weights))
            self.backwards += len(batch["index"])
        return total

    def _logits(self, batch: Batch) -> Tensor:
        inputs = {key: batch[key] for key in ("input_ids", "attention_mask")}
        if "position_ids" in inspect.signature(self.model.forward).parameters:
            # A shared row of positions would give learned position embeddings a shared gradient.
            positions = torch.arange(
                inputs["input_ids"].shape[1], device=inputs["input_ids"].device
            )
            inputs["position_ids"] = positions.expand_as(inputs["input_ids"])
        return self.model(**inputs, use_cache=False).logits  # type: ignore[no-any-return]


def _gradients(loss: Tensor, weights: Mapping[str, nn.Parameter]) -> Sequence[Tensor]:
    # Not every model uses all of its weights.
    return torch.autograd.grad(
        loss, list(weights.values()), allow_unused=True, materialize_grads=True
    )


def _add(total: dict[str, Tensor], parts: Sequence[Tensor]) -> None:
    for whole, part in zip(total.values(), parts, strict=True):
        whole += part


def random_scores(seen: Evidence) -> list[float]:
    """Return a random order, drawn with the seed."""
    draw = random.Random(seen.seed)
    return [draw.random() for _ in seen.pool]


def longest(seen: Evidence) -> list[float]:
    """Return the number of tokens."""
    sizes = [0.0] * len(seen.pool)
    for batch in seen.batches:
        for index, mask in zip(batch["index"].tolist(), batch["attention_mask"], strict=True):
            sizes[index] = float(mask.sum())
    return sizes


def shortest(seen: Evidence) -> list[float]:
    """Return minus the number of tokens."""
    return [-size for size in longest(seen)]


@torch.no_grad()
def highest_loss(seen: Evidence) -> list[float]:
    """Return the loss that the broken model has on the candidate."""
    scores = [0.0] * len(seen.pool)
    for batch in seen.batches:
        for index, loss in zip(batch["index"].tolist(), seen.losses(batch).tolist(), strict=True):
            scores[index] = loss
    return scores


def lowest_loss(seen: Evidence) -> list[float]:
    """Return minus the loss that the broken model has on the candidate."""
    return [-loss for loss in highest_loss(seen)]


def gradient_match(seen: Evidence) -> list[float]:
    """Return <grad f, grad l_i>: how fast f falls when training on the candidate starts.

    Only over two-dimensional weights: norms and biases are left out.
    """
    weights = seen.weights()
    gradient = seen.upper_gradient(weights)
    scores = [0.0] * len(seen.pool)
    for batch in seen.batches:
        products = inner_products(seen.factors(batch, weights), gradient)
        for index, product in zip(batch["index"].tolist(), products.tolist(), strict=True):
            scores[index] = product
    return scores


def leading_directions(seen: Evidence) -> dict[str, Tensor]:
    """Return the leading left singular vectors of the mean gradient, (out, k), by weight.

    Only of linear layers: an embedding's gradient has a row for each token that occurs, and that of
    a tied embedding mixes these rows with the output layer's.
    """
    weights = seen.weights()
    users: dict[str, list[nn.Module]] = {}
    for name, layer, _ in layers_of(seen.model, weights):
        users.setdefault(name, []).append(layer)
    linear = [n for n, each in users.items() if len(each) == 1 and not _embeds(each[0])]
    gradient = seen.mean_gradient(weights)
    return {
        name: torch.linalg.svd(gradient[name].double(), full_matrices=False)[0][:, : seen.overlap_k]
        for name in linear
    }


def _embeds(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding)


def mean_overlap(seen: Evidence) -> list[float]:
    """Return the overlap of the candidate's leading directions with those of the mean gradient.

    The mean over the weight matrices of ``||U^T U'||_F^2 / min(rank U, rank U')`` (arXiv
    2601.01887), with the `overlap_k` leading left singular vectors of each gradient.
    """
    weights = seen.weights()
    leading = leading_directions(seen) if seen.leading is None else seen.leading
    scores = [0.0] * len(seen.pool)
    for batch in seen.batches:
        factors = seen.factors(batch, weights)
        for place, index in enumerate(batch["index"].tolist()):
            overlaps = [
                _overlap(factors[name], place, directions, seen.overlap_k)
                for name, directions in leading.items()
            ]
            scores[index] = sum(overlaps) / len(overlaps)
    return scores


def _overlap(parts: list[tuple[Tensor, Tensor]], place: int, leading: Tensor, k: int) -> float:
    (left, right), *_ = parts
    d, x = left[place], right[place]
    used = d.ne(0).any(-1)
    d, x = d[used], x[used]
    size = min(k, *x.shape, d.shape[1])
    if size == 0:
        return 0.0
    u, s, _ = gradient_svd(x.double(), d.double(), size)
    kept = s > s[:1] * 1e-9
    return subspace_overlap(u[:, kept], leading) if kept.any() else 0.0


def general_first(seen: Evidence) -> list[float]:
    """Return 1 for candidates of the category `general` and 0 for the others."""
    return [float(row.category == GENERAL) for row in seen.pool]


RULES: dict[str, Callable[[Evidence], list[float]]] = {
    "random": random_scores,
    "longest": longest,
    "shortest": shortest,
    "lowest_loss": lowest_loss,
    "highest_loss": highest_loss,
    "gradient_match": gradient_match,
    "mean_overlap": mean_overlap,
    "general_first": general_first,
}
