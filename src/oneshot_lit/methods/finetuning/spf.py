"""SPF: fine-tune with gradients that do not raise the loss on safety rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from oneshot_lit.data.side import Stream, require_stream
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.attack import HarmfulFineTuningModule
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.finetuning.projection import (
    Granularity,
    Space,
    inner_product,
    low_rank,
    project,
)
from oneshot_lit.models.shared_prefix import has_dropout
from oneshot_lit.strategies.further_gradients import further_gradients
from oneshot_lit.strategies.gradient_edits import Reduce, own_parts
from oneshot_lit.strategies.resumed_loops import step_numbers
from oneshot_lit.strategies.weights import weight_parts

SAFETY = "safety"
ABOUT = [
    About(
        name="SPF",
        stage="during fine-tuning",
        needs="refused rows",
        paper="2601.10141",
        agreement="exact with the released projection; `rank_k` and `left_space` are inferred",
        config="defence/spf.yaml",
    ),
    About(
        name="SPF as it runs under DeepSpeed",
        stage="during fine-tuning",
        needs="refused rows",
        paper="2601.10141",
        agreement="formula; the release's two steps a batch were emulated",
        config="defence/spf_released.yaml",
    ),
]


class SafetyRows(HarmfulFineTuningModule):
    """Fine-tuning with safety rows beside each step; the base of both forms of SPF.

    Args:
        safety_batch: Rows of `data.side.safety` for each optimiser step, the same ones in every
            process and in every accumulated batch.
    """

    def __init__(self, *args: Any, safety_batch: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if safety_batch < 1:
            raise OneShotError(f"model.safety_batch: must be at least 1, not {safety_batch}.")
        self.safety_batch = safety_batch
        self._logged: dict[str, Tensor] = {}

    def streams(self, batches: int) -> dict[str, Stream]:
        """Ask for the same safety rows in all batches of a step."""
        numbers: Callable[[int], list[int]] = partial(step_numbers, self.trainer, batches)
        return {SAFETY: Stream(self.safety_batch, numbers)}

    def setup(self, stage: str) -> None:
        """Refuse to train without safety rows."""
        super().setup(stage)
        if stage == "fit":
            require_stream(self.trainer, SAFETY, type(self).__name__, "refused rows")

    def safety_loss(self, rows: dict[str, Tensor]) -> Tensor:
        """Return the mean loss of the tokens of safety rows."""
        return LanguageModelModule.compute_loss(self, rows)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Log what was measured in the step."""
        super().on_train_batch_end(*args, **kwargs)
        for name, value in self._logged.items():
            self.log(f"train/{name}", value)
        self._logged = {}


class SPF(SafetyRows):
    """Fine-tuning whose gradients are projected off a safety gradient (arXiv 2601.10141).

    In each optimiser step the gradient of the loss on a few safety rows is computed, too. Where the
    gradient of the step would raise that loss, its part along the safety gradient is taken out,
    once a step, on the accumulated gradient and before clipping. The safety gradient itself is
    never applied. An optimiser such as Adam takes other steps than the gradient; so
    ``train/safety_change`` is the first-order change of the safety loss in the step that was taken.

    Args:
        safety_batch: Rows of `data.side.safety` for each optimiser step; 1 in the release. One row
            protects that row rather than refusal as such; try 16.
        granularity: Project each tensor by itself (``tensor``), or all of them together
            (``global``).
        eps: Safety gradients whose squared norm is as small as this are left alone.
        subspace: ``vector`` is the release. What the paper does with the leading `rank_k`
            directions is not known; ``rank_k`` puts the best approximation of that rank in the
            place of each matrix of the safety gradient, and ``left_space`` takes out all that lies
            in the space of its left singular vectors.
        rank_k: Directions of each matrix, for ``rank_k`` and ``left_space``. They need a singular
            value decomposition of every matrix in every step.
    """

    def __init__(
        self,
        *args: Any,
        safety_batch: int = 1,
        granularity: Granularity = "tensor",
        eps: float = 1e-8,
        subspace: Literal["vector", "rank_k", "left_space"] = "vector",
        rank_k: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, safety_batch=safety_batch, **kwargs)
        if (subspace == "vector") != (rank_k is None) or (rank_k is not None and rank_k < 1):
            raise OneShotError(
                f"model.rank_k: is {rank_k}, with subspace {subspace}; give a number from 1 on "
                "with subspace rank_k or left_space, and none with vector."
            )
        if eps < 0:
            raise OneShotError(f"model.eps: must not be negative, not {eps}.")
        if subspace == "left_space" and granularity == "global":
            raise OneShotError("model.granularity: left_space is a matter of each tensor; drop it.")
        self.granularity, self.eps = granularity, eps
        self.subspace, self.rank_k = subspace, rank_k
        # Of the current step: the safety gradient, its loss, and the spaces of its matrices.
        self._safety: dict[str, Tensor] | None = None
        self._safety_loss = torch.zeros(())
        self._spaces: dict[str, Space] = {}
        # Weights before a step that is logged, and the sum over all parts.
        self._before: tuple[dict[str, Tensor], Reduce] | None = None

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Compute the safety gradient, once an optimiser step, and then the loss."""
        # The weights are the same in all batches that are accumulated.
        if self._safety is None:
            self._safety = self._safety_gradient(batch["side"][SAFETY])
        return super().training_step(batch, batch_idx)

    def edit_gradients(self, gradients: Mapping[str, Tensor], reduce: Reduce) -> None:
        """Project the gradients of a step off the safety gradient."""
        assert self._safety is not None
        projected = project(
            gradients, self._safety, reduce, self.eps, self.granularity, self._spaces
        )
        if self._log_this_step():
            count = torch.tensor(float(len(projected)))
            self._logged = {"projected_tensors": count, "safety_loss": self._safety_loss}
            self._before = {n: w.clone() for n, w in weight_parts(self).items()}, reduce
        else:
            self._safety = None

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Log how the step changes the safety loss, to first order."""
        if self._before is not None and self._safety is not None:
            (before, reduce), self._before = self._before, None
            moved = {n: w - before[n] for n, w in weight_parts(self).items()}
            self._logged["safety_change"] = inner_product(moved, self._safety, reduce)
            self._safety = None
        super().on_train_batch_end(*args, **kwargs)

    def _safety_gradient(self, rows: dict[str, Tensor]) -> dict[str, Tensor]:
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        bases: dict[str, tuple[Tensor, torch.Size]] = {}

        def loss() -> Tensor:
            # All processes need the same gradient. Only with dropout, because a model that is not
            # in training checkpoints no activations.
            drops = has_dropout(self.model)
            if drops:
                self.eval()
            loss = self.safety_loss(rows)
            if drops:
                self.train()
            self._safety_loss = loss.detach()
            return loss

        def leading(name: str, whole: Tensor) -> Tensor:
            if whole.dim() != 2:
                return whole
            assert self.rank_k is not None
            nearest, left = low_rank(whole, self.rank_k)
            if self.subspace == "left_space":
                bases[name] = left, whole.shape
            return nearest

        change = None if self.rank_k is None else leading
        gradient = further_gradients(self.trainer, named, loss, change)
        self._spaces = {}
        for name, (left, shape) in bases.items():
            numbers = torch.arange(shape.numel(), device=left.device).view(shape)
            entries = own_parts(named, {name: numbers})[name].clone()
            self._spaces[name] = Space(left, shape[1], entries)
        return gradient


class SPFReleased(SafetyRows):
    """Two optimiser steps a batch: one on the task, one on safety rows, and no projection.

    This is what the released code of SPF does under accelerate and DeepSpeed, where each backward
    pass also takes a step; published numbers of that repository are from it. The optimiser's
    moments are shared, and the scheduler counts both steps as one, as `trainer.max_steps` does.

    Args:
        safety_batch: Rows of `data.side.safety` for each step on them.
    """

    def __init__(self, *args: Any, safety_batch: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, safety_batch=safety_batch, **kwargs)
        self._batch: tuple[dict[str, Any], int] | None = None
        self._second = False

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Return the loss on the task, or in the second step that on the safety rows."""
        if self._second:
            loss = self.safety_loss(batch["side"][SAFETY])
            if super()._log_this_step():
                self._logged = {"safety_loss": loss.detach()}
            return loss
        self._batch = batch, batch_idx
        return super().training_step(batch, batch_idx)

    def _log_this_step(self) -> bool:
        # The norm that is logged is that of the first gradient.
        return not self._second and super()._log_this_step()

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Take the step on the task, and then the one on the safety rows."""
        trainer = self.trainer
        ends = not trainer.fit_loop._should_accumulate()
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        if not ends:
            return

        @torch.enable_grad()
        def closure() -> Tensor:
            assert self._batch is not None
            loss: Any = trainer.strategy.training_step(*self._batch)
            optimizer.zero_grad()
            trainer.strategy.backward(loss, optimizer.optimizer)
            return loss.detach()  # type: ignore[no-any-return]

        self._second = True
        try:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)
        finally:
            self._second, self._batch = False, None
