"""`SealTraining`: the model and the selector of SEAL, and a step of both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_training
from oneshot_lit.methods.select.seal_steps import (
    STARTS,
    Activation,
    mean_part,
    row_weights,
    selector_loss,
)
from oneshot_lit.models.loss import row_losses


class SealTraining:
    """The bilevel problem of SEAL (arXiv 2410.07471) for a language model.

    The processes share the rows of a step: each computes the losses and gradients of its own, and
    all of them add these up, so that they take the same steps.

    Args:
        module: A `LanguageModelModule` with its model, under a trainer of a job.
        users: The user's rows; each has a token to learn.
        safe: The safe rows.
        activation: How logits become weights.
        lr: Step size of the selector.
        max_norm: Clip the model's gradient to this norm; None does not.
        selector_max_norm: The same for the selector.
        rows_at_once: Rows in one forward pass.
    """

    def __init__(
        self,
        module: Any,
        users: Sequence[Encoded],
        safe: Sequence[Encoded],
        activation: Activation,
        lr: float,
        max_norm: float | None = None,
        selector_max_norm: float | None = None,
        rows_at_once: int = 64,
    ) -> None:
        self.module, self.users, self.safe = module, users, safe
        self.activation: Activation = activation
        self.max_norm, self.selector_max_norm = max_norm, selector_max_norm
        self.rows_at_once = rows_at_once
        self.trained = [p for p in module.model.parameters() if p.requires_grad]
        self.optimizer = module.optimizer(self.trained)
        double = any(p.dtype == torch.float64 for p in self.trained)
        self.logits = torch.full(
            (len(users),),
            STARTS[activation],
            # The selector is never in 16 bits.
            dtype=torch.float64 if double else torch.float32,
            device=module.device,
            requires_grad=True,
        )
        # As the release: no decay.
        self.selector = torch.optim.AdamW([self.logits], lr=lr, betas=(0.9, 0.95), weight_decay=0.0)

    def step(self, safe: list[int], users: list[int], upper: float) -> dict[str, float]:
        """Take one step of the model and one of the selector.

        Args:
            safe: Places of the safe rows.
            users: Places of the user's rows.
            upper: Weight of the safe rows.

        Returns:
            Mean losses before the step, and the range of the weights after it.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        weights = row_weights(self.logits.detach(), self.activation)[users]
        self.optimizer.zero_grad(set_to_none=True)
        safe_losses = self._descend(self.safe, safe, upper)
        user_losses = self._descend(self.users, users, 1 - upper, weights)
        if not torch.isfinite(safe_losses.sum() + user_losses.sum()):
            raise FloatingPointError("a loss is not finite")
        self._share_gradients()
        if self.max_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.trained, self.max_norm)
        self.optimizer.step()
        # With the losses from before the model's step.
        self.selector.zero_grad(set_to_none=True)
        loss = selector_loss(self.logits, users, user_losses, self.activation)
        loss.backward()  # type: ignore[no-untyped-call]
        if self.selector_max_norm is not None:
            torch.nn.utils.clip_grad_norm_([self.logits], self.selector_max_norm)
        self.selector.step()
        after = row_weights(self.logits.detach(), self.activation)
        return {
            "safe_loss": float(safe_losses.mean()),
            "user_loss": float(user_losses.mean()),
            "weighted_loss": float(loss.detach()),
            "smallest": float(after.min()),
            "largest": float(after.max()),
        }

    def losses(self) -> Tensor:
        """Return the losses of the user's rows at the present model, without dropout: (N,)."""
        model = self.module.model
        training = model.training
        model.eval()
        losses = self._descend(self.users, list(range(len(self.users))), 0.0)
        model.train(training)
        return losses.cpu()

    def _descend(
        self,
        rows: Sequence[Encoded],
        chosen: list[int],
        factor: float,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the losses of some rows, and add the gradient of factor times their mean.

        Every process gets all losses; the gradients are those of its own rows.
        """
        module, trainer = self.module, self.module.trainer
        losses = torch.zeros(len(chosen), dtype=self.logits.dtype, device=module.device)
        mine = range(trainer.global_rank, len(chosen), trainer.world_size)
        for start in range(0, len(mine), self.rows_at_once):
            places = list(mine[start : start + self.rows_at_once])
            some = [rows[chosen[place]] for place in places]
            padded = pad_training(some, module.tokenizer.pad_token_id)
            batch = {key: value.to(module.device) for key, value in padded.items()}
            with torch.set_grad_enabled(factor > 0):
                own = row_losses(module.labelled_logits(batch), batch["labels"])
                if factor > 0:
                    of_rows = None if weights is None else weights[places]
                    part = factor * mean_part(own, len(chosen), of_rows)
                    part.backward()  # type: ignore[no-untyped-call]
            losses[places] = own.detach().to(losses)
        return self._summed(losses)

    def _share_gradients(self) -> None:
        """Add up the gradients of all processes."""
        if self.module.trainer.world_size == 1:
            return
        for p in self.trained:
            # A process may have had no row of this step.
            p.grad = self._summed(torch.zeros_like(p) if p.grad is None else p.grad)

    def _summed(self, values: Tensor) -> Tensor:
        trainer = self.module.trainer
        if trainer.world_size == 1:
            return values
        return trainer.all_reduce(values, reduce_op="sum")  # type: ignore[no-any-return]

    def state(self) -> dict[str, Any]:
        """Return the trained weights, the logits and both optimisers' states."""
        return {
            "weights": [p.detach() for p in (*self.trained, self.logits)],
            "optimizer": self.optimizer.state_dict(),
            "selector": self.selector.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned, which was saved and loaded."""
        for own, saved in zip((*self.trained, self.logits), state["weights"], strict=True):
            own.copy_(saved)
        self.optimizer.load_state_dict(state["optimizer"])
        self.selector.load_state_dict(state["selector"])
