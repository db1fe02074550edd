"""`Patcher`: patch a broken model with one candidate after another, each time from the start."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from oneshot_lit.conversation import Conversation
from oneshot_lit.models.loss import next_token_loss


def candidate_seed(run_seed: int, candidate: Conversation) -> int:
    """Return the seed for a candidate; it does not depend on when or where it is patched."""
    text = f"{run_seed} {candidate.digest()}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


class Patcher:
    """Plain fine-tuning on one instance (arXiv 2601.01887), undone before the next.

    Args:
        module: The selection with the model to patch; it must hold the broken model's weights.
        steps: Optimiser steps on each candidate.
    """

    def __init__(self, module: Any, steps: int) -> None:
        self.module, self.steps = module, steps
        self.start = {n: p.detach().clone() for n, p in module.model.named_parameters()}

    def __call__(self, candidate: Conversation) -> float:
        """Leave the module's model patched with a candidate; return the loss at the last step.

        Dropout depends only on the run's seed and the candidate, not on what was patched before or
        by which process.
        """
        device = self.module.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(candidate_seed(self.module.run_seed, candidate))
            return self._patch(candidate)

    def _patch(self, candidate: Conversation) -> float:
        module = self.module
        (batch,) = module.batches([candidate])
        self.undo()
        optimizer = module.optimizer([p for p in module.model.parameters() if p.requires_grad])
        scheduler = None if module.lr_scheduler is None else module.lr_scheduler(optimizer)
        module.train()
        for _ in range(self.steps):
            logits = module(batch["input_ids"], batch["attention_mask"])
            loss = next_token_loss(logits, batch["labels"])
            optimizer.zero_grad(set_to_none=True)
            module.manual_backward(loss)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return float(loss.detach())

    @torch.no_grad()
    def undo(self) -> None:
        """Go back to the broken model."""
        for name, parameter in self.module.model.named_parameters():
            parameter.copy_(self.start[name])
