"""`PatchingModule`: the base of selections that patch with one candidate after another."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.base import SelectionModule
from oneshot_lit.models.loss import next_token_loss


class PatchingModule(SelectionModule):
    """Patch the broken model with each candidate alone, and measure the result.

    One step is one candidate: the weights go back to the broken model's, a new optimiser takes
    `patch_steps` steps on the candidate (arXiv 2601.01887), and `measure_patch` measures.

    Args:
        patch_steps: Optimiser steps on each candidate; the paper takes ten.
    """

    trains = schedules = True
    progress_name = "candidates"

    # Nothing is measured twice after a kill.
    saves_each_step = True

    def __init__(self, *args: Any, patch_steps: int = 10, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if patch_steps < 1:
            raise OneShotError(f"model.patch_steps must be at least 1, not {patch_steps}.")
        if self.peft is not None:
            raise OneShotError("model.peft: this selection patches all weights; drop it.")
        self.patch_steps = patch_steps
        # Position in the pool -> what `measure_patch` returned.
        self.measured: dict[int, Any] = {}
        self._start: dict[str, torch.Tensor] = {}

    def measure_patch(self, loss: float) -> Any:
        """Measure the patched model; returns plain values.

        Args:
            loss: The candidate's loss at the last step, in nats.
        """
        raise NotImplementedError

    def rows_to_measure(self) -> list[int]:
        """Return the positions of the candidates to measure, in their order."""
        return list(range(len(self.pool)))

    def prepare(self) -> None:
        """Keep the broken model."""
        super().prepare()
        self._start = {n: p.detach().clone() for n, p in self.model.named_parameters()}

    def steps(self) -> tuple[int, int]:
        """Return how many candidates are measured, and how many there are to measure."""
        return len(self.measured), len(self.rows_to_measure())

    def step(self) -> bool:
        """Patch with the next candidate, and measure the result."""
        row = next(row for row in self.rows_to_measure() if row not in self.measured)
        # What is drawn depends only on the run's seed and the candidate, not on what was patched
        # before or by which process.
        text = f"{self.run_seed} {self.pool[row].digest()}"
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7]))
            loss = self._patch(self.pool[row])
            self.eval()
            with torch.no_grad():
                self.measured[row] = self.measure_patch(loss)
        done, total = self.steps()
        return done == total

    def _patch(self, candidate: Conversation) -> float:
        """Leave the model patched with a candidate; return the loss at the last step."""
        (batch,) = self.batches([candidate])
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(self._start[name])
        optimizer = self.optimizer([p for p in self.model.parameters() if p.requires_grad])
        scheduler = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        self.train()
        for _ in range(self.patch_steps):
            logits = self(batch["input_ids"], batch["attention_mask"])
            loss = next_token_loss(logits, batch["labels"])
            optimizer.zero_grad(set_to_none=True)
            self.manual_backward(loss)
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        return float(loss.detach())

    def job_state(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {"measured": self.measured}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Restore what was measured."""
        self.measured = dict(state["measured"])
