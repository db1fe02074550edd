"""`TwoCopies`: the bilevel problem of a language model, as two copies of its trained weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from oneshot_lit.methods.select.reference import (
    Batch,
    ReferenceRows,
    answer_logits,
    batch_logits,
)
from oneshot_lit.models.loss import row_losses


class TwoCopies:
    """The problem of `outer_step` for a language model.

    The model holds theta. Omega has values of its own for the trained weights, of an adapter or of
    the whole model, and an optimiser of its own; `omega` puts them into the model for a while.

    Args:
        model: The model to start from.
        pool: Batches of all candidates, with their ``index``.
        upper: The terms of the upper objective; their divergences add up to f.
        optimizer: Makes the optimiser of each copy.
    """

    def __init__(
        self,
        model: nn.Module,
        pool: Sequence[Batch],
        upper: Sequence[ReferenceRows],
        optimizer: Callable[[Any], torch.optim.Optimizer],
    ) -> None:
        self.model, self.pool, self.upper = model, list(pool), list(upper)
        self.candidates = sum(len(batch["index"]) for batch in self.pool)
        self.weights = [p for p in model.parameters() if p.requires_grad]
        # The values of the copy that is not in the model.
        self._other = [p.detach().clone() for p in self.weights]
        self.optimizers = [optimizer(self.weights), optimizer(self.weights)]
        self.forwards = self.backwards = 0

    @contextmanager
    def omega(self) -> Iterator[None]:
        """Return a context in which the model holds omega."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for number, p in enumerate(self.weights):
            p.data, self._other[number] = self._other[number], p.data

    def lower_step(self, weights: Tensor) -> None:
        """Take one step of omega down g."""
        with self.omega():
            self.optimizers[1].zero_grad(set_to_none=True)
            self._descend_candidates(weights, 1.0)
            self.optimizers[1].step()

    def upper_step(self, weights: Tensor, gamma: float) -> float:
        """Take one step of theta down f + gamma g; return f before it."""
        self.optimizers[0].zero_grad(set_to_none=True)
        f = 0.0
        for term in self.upper:
            for share in term.divergences(partial(answer_logits, self.model)):
                share.backward()  # type: ignore[no-untyped-call]
                f += float(share.detach())
            self._count(term.rows, backward=True)
        self._descend_candidates(weights, gamma)
        self.optimizers[0].step()
        return f

    def candidate_losses(self) -> tuple[Tensor, Tensor]:
        """Return l_i(theta) and l_i(omega), each (candidates,), float64, without dropout."""
        training = self.model.training
        # Their difference changes the weights; two dropout masks would make it random.
        self.model.eval()
        upper = self._losses()
        with self.omega():
            lower = self._losses()
        self.model.train(training)
        return upper, lower

    @torch.no_grad()
    def follow(self) -> None:
        """Put omega where theta is; omega's optimiser keeps its state."""
        for omega, theta in zip(self._other, self.weights, strict=True):
            omega.copy_(theta)

    def _descend_candidates(self, weights: Tensor, factor: float) -> None:
        """Add the gradient of factor times g."""
        for batch in self.pool:
            losses = row_losses(batch_logits(self.model, batch), batch["labels"])
            chosen = weights[batch["index"].cpu()].to(losses)
            (factor * (chosen * losses).sum()).backward()  # type: ignore[no-untyped-call]
            self._count(len(losses), backward=True)

    @torch.no_grad()
    def _losses(self) -> Tensor:
        by_row = torch.empty(self.candidates, dtype=torch.float64)
        for batch in self.pool:
            losses = row_losses(batch_logits(self.model, batch), batch["labels"])
            by_row[batch["index"].cpu()] = losses.double().cpu()
            self._count(len(losses))
        return by_row

    def _count(self, rows: int, *, backward: bool = False) -> None:
        self.forwards += rows
        self.backwards += rows * backward

    def state(self) -> dict[str, Any]:
        """Return all weights, the optimisers' states and the counts of rows."""
        return {
            "weights": [p.detach() for p in (*self.weights, *self._other)],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rows": [self.forwards, self.backwards],
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned, which was saved and loaded."""
        for own, value in zip((*self.weights, *self._other), state["weights"], strict=True):
            own.copy_(value)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.forwards, self.backwards = state["rows"]
