"""Lisa: take turns between alignment rows and the user's, and stay near where the other turn ended.

Each turn is held by a proximal term to the weights that the other one left (arXiv 2405.18641).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from oneshot_lit.data.side import MAIN, Stream, require_stream
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.attack import HarmfulFineTuningModule
from oneshot_lit.strategies.folders import own_state
from oneshot_lit.strategies.gradient_edits import Reduce
from oneshot_lit.strategies.resumed_loops import step_numbers
from oneshot_lit.strategies.weights import weight_parts

ALIGNMENT, USER = "alignment", "user"
ABOUT = About(
    name="Lisa",
    stage="during fine-tuning",
    needs="alignment rows",
    paper="2405.18641",
    agreement="exact with the release without accumulation, where it counts batches, not steps",
    config="defence/lisa.yaml",
)


def aligns(step: int, alignment_steps: int, user_steps: int) -> bool:
    """Return whether an optimiser step is taken on alignment rows.

    Turns of `alignment_steps` and `user_steps` follow one another, alignment first. A turn of no
    steps never comes.

    Args:
        step: The number of the step in the run, from 0 on.
        alignment_steps: Steps of a turn on alignment rows (K1).
        user_steps: Steps of a turn on the user's rows (K2); one of the two is not 0.
    """
    return step % (alignment_steps + user_steps) < alignment_steps


@torch.no_grad()
def add_proximal(
    gradients: Mapping[str, Tensor],
    weights: Mapping[str, Tensor],
    anchor: Mapping[str, Tensor],
    rho: float,
) -> Tensor:
    """Add, in place, the gradient of ``rho / 2 * sum ||w - a||^2`` to gradients.

    Args:
        gradients: Name -> this process's part, flat.
        weights: Name -> the same part of the weights w.
        anchor: Name -> the same part of the weights a.
        rho: Strength.

    Returns:
        The value of the term on these parts, a scalar.
    """
    squares = []
    for name, gradient in gradients.items():
        other = anchor[name]
        away = weights[name].to(other.dtype) - other
        gradient.add_((rho * away).to(gradient))
        squares.append(away.square().sum())
    return rho / 2 * torch.stack(squares).sum()


class Lisa(HarmfulFineTuningModule):
    """Fine-tuning in turns on alignment rows and on the user's, with a proximal term.

    A turn on alignment rows (`data.side.alignment`) comes first. At the end of each turn the
    weights are kept, and the next turn's loss has ``rho / 2`` times the squared distance from what
    the other turn left, so it is zero in the first step of a turn. Turns are counted in optimiser
    steps, and the term is added once a step, also under accumulation. There is one optimiser, which
    is never reset. ``train/loss`` is the loss on the rows, ``train/proximal`` the term.

    Args:
        alignment_step: Optimiser steps of a turn on alignment rows (K1); with 0 there is none, and
            the term holds the model near its start.
        finetune_step: Optimiser steps of a turn on the user's rows (K2); with 0 there is none.
        rho: Strength of the proximal term.
        warmup_fraction: No proximal term in this share of the run's steps, those of
            `trainer.max_epochs` or else `trainer.max_steps`. It is in the released code only.
        consume_user_batches: The user's batches that come in turns on alignment rows are lost, as
            in the release (``released``), or come in the next turn on the user's rows (``never``).
            The number of steps is the same.
    """

    def __init__(
        self,
        *args: Any,
        alignment_step: int = 100,
        finetune_step: int = 900,
        rho: float = 1.0,
        warmup_fraction: float = 0.1,
        consume_user_batches: Literal["released", "never"] = "released",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        given = {"alignment_step": alignment_step, "finetune_step": finetune_step, "rho": rho}
        for name, value in (given | {"warmup_fraction": warmup_fraction}).items():
            if value < 0:
                raise OneShotError(f"model.{name}: must not be negative, not {value}.")
        if alignment_step == finetune_step == 0:
            raise OneShotError(
                "model.alignment_step, model.finetune_step: both are 0, which leaves no step; "
                "raise one of them."
            )
        self.alignment_step, self.finetune_step, self.rho = alignment_step, finetune_step, rho
        self.warmup_fraction, self.consume_user_batches = warmup_fraction, consume_user_batches
        # What each turn left, this process's parts; the start until then.
        self._left: dict[str, dict[str, Tensor]] = {}
        self._left_at = 0
        self._warmup = 0.0

    # ---------------------------------------------------------------- turns

    def setup(self, stage: str) -> None:
        """Refuse to train without alignment rows."""
        super().setup(stage)
        if stage == "fit" and self.alignment_step > 0:
            require_stream(self.trainer, ALIGNMENT, "Lisa", "alignment rows")

    def streams(self, batches: int) -> dict[str, Stream]:
        """Ask for the next alignment rows in the turns on them, and not in the others."""
        wanted = {ALIGNMENT: Stream(numbers=partial(self._numbers, batches, True))}
        if self.consume_user_batches == "never":
            wanted[MAIN] = Stream(numbers=partial(self._numbers, batches, False))
        return wanted

    def _numbers(self, batches: int, alignment: bool, epoch: int) -> list[int]:
        """Return how many batches of one kind of turn came before each batch of an epoch."""
        numbers: list[int] = []
        count = 0
        for each in range(epoch + 1):
            numbers = []
            for step in step_numbers(self.trainer, batches, each):
                numbers.append(count)
                count += self._aligns(step) == alignment
        return numbers

    def _aligns(self, step: int) -> bool:
        return aligns(step, self.alignment_step, self.finetune_step)

    def _learned(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Return the rows that the current step learns."""
        return batch["side"][ALIGNMENT] if self._aligns(self.global_step) else batch

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss on the alignment rows or on the user's."""
        return super().compute_loss(self._learned(batch))

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        """Return the number of tokens that the current step learns."""
        return super().loss_weight(self._learned(batch))

    # ---------------------------------------------------------------- the proximal term

    def on_train_start(self) -> None:
        """Keep the start, unless a checkpoint has brought what the turns left."""
        super().on_train_start()
        self._warmup = self.warmup_fraction * self._all_steps()
        if not self._left:
            start = self._copied()
            self._left = {ALIGNMENT: start, USER: start}
        for turn, parts in self._left.items():
            self._left[turn] = {name: part.to(self.device) for name, part in parts.items()}

    def _all_steps(self) -> int:
        trainer = self.trainer
        batches, epochs = trainer.num_training_batches, trainer.max_epochs
        if epochs is not None and epochs >= 0:
            return len({s for e in range(epochs) for s in step_numbers(trainer, int(batches), e)})
        if trainer.max_steps < 0 and self.warmup_fraction > 0:
            raise OneShotError(
                "trainer.max_epochs: Lisa's warm-up is a share of the run, which has no end; give "
                "trainer.max_epochs or trainer.max_steps, or model.warmup_fraction 0."
            )
        return max(trainer.max_steps, 0)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Keep the weights where a turn ends."""
        step = self.global_step
        before = self._aligns(step - 1)
        if step not in (0, self._left_at) and before != self._aligns(step):
            # Accumulated batches belong to one step.
            self._left_at = step
            self._left[ALIGNMENT if before else USER] = self._copied()

    def edit_gradients(self, gradients: Mapping[str, Tensor], reduce: Reduce) -> None:
        """Add the gradient of the proximal term."""
        step = self.global_step
        if step <= self._warmup or self.rho == 0:
            return
        anchor = self._left[USER if self._aligns(step) else ALIGNMENT]
        value = add_proximal(gradients, weight_parts(self), anchor, self.rho)
        if self._log_this_step():
            self.log("train/proximal", reduce(value))

    def _copied(self) -> dict[str, Tensor]:
        parts = weight_parts(self).items()
        return {n: w.to(torch.promote_types(w.dtype, torch.float32), copy=True) for n, w in parts}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the turns left."""
        super().on_save_checkpoint(checkpoint)
        own_state(checkpoint)["lisa"] = self._left

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what the turns left.

        Raises:
            OneShotError: if the checkpoint is of a run without turns.
        """
        super().on_load_checkpoint(checkpoint)
        if self.trainer.state.fn == "fit":
            self._left = own_state(checkpoint).get("lisa", {})
            if not self._left:
                raise OneShotError(
                    "--ckpt_path: the checkpoint is of no run of Lisa; start anew without it."
                )
