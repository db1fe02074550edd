"""`TwoCopies`: the bilevel problem of a language model, as two copies of its trained weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from oneshot_lit.methods.select.reference import (
    Batch,
    ReferenceRows,
)
from oneshot_lit.models.loss import labelled_logits, row_losses

CopyName = Literal["theta", "omega"]
THETA: CopyName = "theta"
OMEGA: CopyName = "omega"


class SharedBase:
    """Two LoRA adapters on one frozen model: the base is in memory once.

    The second starts equal to the first: with other random matrices the candidates' losses would
    differ after equal steps, and so would their weights.

    Args:
        model: A PEFT model with two adapters.
        adapters: Their names.
    """

    def __init__(self, model: Any, adapters: tuple[str, str] = (THETA, OMEGA)) -> None:
        self.model = model
        self.adapters: dict[CopyName, str] = {THETA: adapters[0], OMEGA: adapters[1]}
        pairs = zip(self.parameters(THETA), self.parameters(OMEGA), strict=True)
        for first, second in pairs:
            # This copies the dtype, too; PEFT may give a later adapter another.
            second.data = first.detach().clone()

    def __call__(self, name: CopyName, batch: Batch) -> Tensor:
        """Return a copy's logits, (rows, tokens, vocabulary)."""
        self.model.set_adapter(self.adapters[name])
        return _logits(self.model, batch)

    def parameters(self, name: CopyName) -> list[nn.Parameter]:
        """Return the weights of a copy."""
        mark = f".{self.adapters[name]}."
        return [p for key, p in self.model.named_parameters() if mark in key]

    def without_dropout(self) -> AbstractContextManager[None]:
        """Return a context in which neither copy draws a mask."""
        return _evaluating([self.model])


class WholeModels:
    """Two whole models, for small ones.

    Args:
        model: The model to start from; it becomes theta, a copy of it omega.
    """

    def __init__(self, model: nn.Module) -> None:
        self.models: dict[CopyName, nn.Module] = {THETA: model, OMEGA: copy.deepcopy(model)}

    def __call__(self, name: CopyName, batch: Batch) -> Tensor:
        """Return a copy's logits, (rows, tokens, vocabulary)."""
        return _logits(self.models[name], batch)

    def parameters(self, name: CopyName) -> list[nn.Parameter]:
        """Return the weights of a copy."""
        return list(self.models[name].parameters())

    def without_dropout(self) -> AbstractContextManager[None]:
        """Return a context in which neither copy draws a mask."""
        return _evaluating(list(self.models.values()))


@contextmanager
def _evaluating(models: Sequence[nn.Module]) -> Iterator[None]:
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def _logits(model: Any, batch: Batch) -> Tensor:
    output = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    return output.logits  # type: ignore[no-any-return]


class TwoCopies:
    """The `Problem` of the selection for a language model.

    Args:
        copies: Gives the logits of theta and omega, and their weights.
        pool: Batches of all candidates, with their ``index``.
        upper: The terms of the upper objective; their divergences add up to f.
        optimizer: Makes the optimiser of each copy.
    """

    def __init__(
        self,
        copies: SharedBase | WholeModels,
        pool: Sequence[Batch],
        upper: Sequence[ReferenceRows],
        optimizer: Callable[[Any], torch.optim.Optimizer],
    ) -> None:
        self.copies, self.pool, self.upper = copies, list(pool), list(upper)
        self.candidates = sum(len(batch["index"]) for batch in self.pool)
        names: tuple[CopyName, ...] = (THETA, OMEGA)
        self.optimizers = {name: optimizer(copies.parameters(name)) for name in names}
        self.forwards = self.backwards = 0

    def lower_step(self, weights: Tensor) -> None:
        """Take one step of omega down g."""
        self.optimizers[OMEGA].zero_grad(set_to_none=True)
        self._descend_candidates(OMEGA, weights, 1.0)
        self.optimizers[OMEGA].step()

    def upper_step(self, weights: Tensor, gamma: float) -> float:
        """Take one step of theta down f + gamma g; return f before it."""
        self.optimizers[THETA].zero_grad(set_to_none=True)
        f = 0.0
        for term in self.upper:
            for number in range(len(term.batches)):
                share = term.divergence(number, self.answer_logits)
                share.backward()  # type: ignore[no-untyped-call]
                f += float(share.detach())
                self._count(len(term.batches[number]["input_ids"]), backward=True)
        self._descend_candidates(THETA, weights, gamma)
        self.optimizers[THETA].step()
        return f

    def objective(self) -> float:
        """Return f at the present theta."""
        with torch.no_grad():
            return sum(float(d) for t in self.upper for d in t.divergences(self.answer_logits))

    def candidate_losses(self) -> tuple[Tensor, Tensor]:
        """Return l_i(theta) and l_i(omega), each (candidates,), float64, without dropout."""
        # Their difference changes the weights; two dropout masks would make it random.
        with self.copies.without_dropout():
            return self._losses(THETA), self._losses(OMEGA)

    @torch.no_grad()
    def follow(self) -> None:
        """Put omega where theta is; omega's optimiser keeps its state."""
        pairs = zip(self.copies.parameters(OMEGA), self.copies.parameters(THETA), strict=True)
        for omega, theta in pairs:
            omega.copy_(theta)

    def answer_logits(self, batch: Batch) -> Tensor:
        """Return theta's logits on the answers of a batch, (labelled tokens, vocabulary)."""
        return labelled_logits(self.copies(THETA, batch), batch["labels"])

    def _descend_candidates(self, name: CopyName, weights: Tensor, factor: float) -> None:
        """Add the gradient of factor times g to a copy."""
        for batch in self.pool:
            losses = row_losses(self.copies(name, batch), batch["labels"])
            chosen = weights[batch["index"].cpu()].to(losses)
            (factor * (chosen * losses).sum()).backward()  # type: ignore[no-untyped-call]
            self._count(len(losses), backward=True)

    @torch.no_grad()
    def _losses(self, name: CopyName) -> Tensor:
        by_row = torch.empty(self.candidates, dtype=torch.float64)
        for batch in self.pool:
            losses = row_losses(self.copies(name, batch), batch["labels"])
            by_row[batch["index"].cpu()] = losses.double().cpu()
            self._count(len(losses))
        return by_row

    def state(self) -> dict[str, Any]:
        """Return copies of all weights and optimiser states, on the CPU."""
        names: tuple[CopyName, ...] = (THETA, OMEGA)
        return {
            name: {
                "weights": [_copied(p) for p in self.copies.parameters(name)],
                "optimizer": _copied(self.optimizers[name].state_dict()),
            }
            for name in names
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned."""
        for name, optimizer in self.optimizers.items():
            saved = state[name]
            for parameter, weight in zip(
                self.copies.parameters(name), saved["weights"], strict=True
            ):
                parameter.copy_(weight)
            optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))

    def _count(self, rows: int, *, backward: bool = False) -> None:
        self.forwards += rows
        self.backwards += rows * backward


def _copied(value: Any) -> Any:
    """Return a copy on the CPU of a tensor, or of all tensors in lists and mappings."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(each) for each in value)
    return copy.deepcopy(value)
