"""`EnumerationModule`: the bilevel problem for one instance, solved by trying every candidate."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.patching import PatchingModule
from oneshot_lit.methods.select.reference import ReferenceRows, answer_logits
from oneshot_lit.methods.select.upper_level import UpperLevel


class EnumerationModule(PatchingModule, UpperLevel):
    """Patch with each candidate alone; its score is minus the upper objective of the patched model.

    For one instance the lower level has only as many solutions as there are candidates, so the
    bilevel problem (arXiv 2601.01887) needs no relaxation: this computes its value at every point.
    Unlike brute force, it answers no prompts.
    """

    _upper: list[ReferenceRows]

    def prepare(self) -> None:
        """Keep the references' answers, and the broken model."""
        super().prepare()
        self._upper = self.upper_terms()

    def measure_patch(self, loss: float) -> tuple[float, ...]:
        """Return the harmful and the weighted task divergence."""
        logits = partial(answer_logits, self.model)
        return tuple(sum(map(float, term.divergences(logits))) for term in self._upper)

    # --------------------------------------------------------------------- output

    def candidate_scores(self) -> list[float]:
        """Return minus the upper objective of each candidate's patch."""
        scores = [-sum(self.measured[row]) for row in range(len(self.pool))]
        finite = [score for score in scores if math.isfinite(score)]
        if not finite:
            raise OneShotError("model.optimizer.lr: every candidate's patch diverges; lower it.")
        # A patch that diverges is worse than any other; JSON has no infinity.
        return [score if math.isfinite(score) else min(finite) - 1 for score in scores]

    def selection_facts(self) -> dict[str, Any]:
        """Return settings, cost and every candidate's upper objective."""
        rows = len(self.measured)
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
                "row": row + 1,
                "id": self.pool[row].id,
                "category": self.pool[row].category,
                "f": harmful + task if math.isfinite(harmful + task) else None,
                "harmful": harmful if math.isfinite(harmful) else None,
            }
            for row, (harmful, task) in self.measured.items()
        ]
