"""Hooks that change the gradients of a step before the optimiser uses them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from oneshot_lit.strategies.frozen_entries import FrozenEntries
from oneshot_lit.strategies.gradient_edits import Reduce, edit_gradients
from oneshot_lit.strategies.gradients import is_boundary, total_norm


class GradientHooks(LightningModule):
    """The part of `LanguageModelModule` that edits gradients and freezes entries of weights."""

    _frozen: FrozenEntries | None = None
    # Masks that a callback gives, as `frozen_entries` returns them.
    frozen_by_callbacks: Mapping[str, Tensor] = {}
    _log_this_step: Any

    def edit_gradients(self, gradients: Mapping[str, Tensor], reduce: Reduce) -> None:
        """Change the gradients of a step in place, before clipping; does nothing by default.

        Called once an optimiser step, also under accumulation, with the gradients for that step.

        Args:
            gradients: Name of a trained parameter -> this process's part of its gradient, flat: all
                of it under DDP, a shard under FSDP2 and ZeRO.
            reduce: Sums a tensor over all parts; for example, ``reduce((a * b).sum())`` is the
                inner product of two gradients.
        """

    def frozen_entries(self) -> dict[str, Tensor]:
        """Return entries of weights that must not move; by default those that callbacks name.

        Called at the start of training, in all processes.

        Returns:
            Name of a trained parameter -> bool, of its whole shape, True where it is frozen.
        """
        return dict(self.frozen_by_callbacks)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Let the gradients be edited, and log their total norm, before any clipping."""
        if not is_boundary(self.trainer):
            return
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if type(self).edit_gradients is not GradientHooks.edit_gradients:
            edit_gradients(self.trainer, named, self.edit_gradients)
        if self._frozen is not None:
            edit_gradients(self.trainer, named, self._frozen.mask_gradients)
        if self._log_this_step():
            norm = total_norm(self.trainer, list(named.values()))
            if norm is not None:
                self.log("train/grad_norm", norm)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the step, and put frozen entries back."""
        # DeepSpeed itself learns only in the closure whether it is to step, and then counts on.
        ends = not self.trainer.fit_loop._should_accumulate()
        super().optimizer_step(*args, **kwargs)
        if self._frozen is not None and ends:
            self._frozen.restore()
