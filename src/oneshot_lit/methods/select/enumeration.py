"""`EnumerationModule`: the bilevel problem for one instance, solved by trying every candidate."""

from __future__ import annotations

import math
from typing import Any

import torch

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.patching import Patcher
from oneshot_lit.methods.select.reference import Batch, ReferenceRows
from oneshot_lit.methods.select.upper_level import UpperLevel


class EnumerationModule(UpperLevel):
    """Patch with each candidate alone; its score is minus the upper objective of the patched model.

    For one instance the lower level has only as many solutions as there are candidates, so the
    bilevel problem (arXiv 2601.01887) needs no relaxation: this computes its value at every point.
    Unlike brute force, it answers no prompts; unlike the cheap rules, it looks beyond the broken
    model. One step is one candidate.

    Args:
        patch_steps: Optimiser steps on each candidate; the paper takes ten.
    """

    trains = schedules = True
    progress_name = "candidates"

    def __init__(self, *args: Any, patch_steps: int = 10, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if patch_steps < 1:
            raise OneShotError(f"model.patch_steps must be at least 1, not {patch_steps}.")
        if self.peft is not None:
            raise OneShotError("model.peft: enumeration patches all weights; drop it.")
        self.patch_steps = patch_steps
        # Harmful and weighted task divergence of each candidate so far, in the pool's order.
        self.divergences: list[tuple[float, float]] = []
        self._patch: Patcher | None = None
        self._upper: list[ReferenceRows] = []

    def prepare(self) -> None:
        """Keep the references' answers, and the broken model."""
        super().prepare()
        self._upper = self.upper_terms()
        self._patch = Patcher(self, self.patch_steps)

    def steps(self) -> tuple[int, int]:
        """Return how many candidates are measured, and how many there are."""
        return len(self.divergences), len(self.pool)

    def step(self) -> bool:
        """Patch with the next candidate and measure both divergences."""
        assert self._patch is not None
        self._patch(self.pool[len(self.divergences)])
        self.eval()
        with torch.no_grad():
            harmful, task = (
                sum(float(share) for share in term.divergences(self._answer_logits))
                for term in self._upper
            )
        self.divergences.append((harmful, task))
        return len(self.divergences) == len(self.pool)

    def _answer_logits(self, batch: Batch) -> torch.Tensor:
        return self._plain_logits(self.model, batch)

    # --------------------------------------------------------------------- output

    def candidate_scores(self) -> list[float]:
        """Return minus the upper objective of each candidate's patch."""
        scores = [-sum(parts) for parts in self.divergences]
        finite = [score for score in scores if math.isfinite(score)]
        if not finite:
            raise OneShotError("model.optimizer.lr: every candidate's patch diverges; lower it.")
        # A patch that diverges is worse than any other; JSON has no infinity.
        return [score if math.isfinite(score) else min(finite) - 1 for score in scores]

    def selection_facts(self) -> dict[str, Any]:
        """Return settings, cost and every candidate's upper objective."""
        rows = len(self.divergences)
        return {
            "aligned": self.aligned,
            "patch_steps": self.patch_steps,
            "task_weight": self.task_weight,
            "candidates": self.progress_rows(),
            "forward_rows": rows * (self.patch_steps + self.reference_rows) + self.reference_rows,
            "backward_rows": rows * self.patch_steps,
            "answers": self.answers,
        }

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return the upper objective of each candidate measured so far, and its harmful term."""
        return [
            {
                "row": row,
                "id": candidate.id,
                "category": candidate.category,
                "f": harmful + task if math.isfinite(harmful + task) else None,
                "harmful": harmful if math.isfinite(harmful) else None,
            }
            for row, (candidate, (harmful, task)) in enumerate(
                zip(self.pool, self.divergences, strict=False), 1
            )
        ]

    # ---------------------------------------------------------------- checkpoints

    def job_state(self) -> dict[str, Any]:
        """Return the divergences so far."""
        return {"divergences": list(self.divergences)}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Restore the divergences."""
        self.divergences = [(float(a), float(b)) for a, b in state["divergences"]]
