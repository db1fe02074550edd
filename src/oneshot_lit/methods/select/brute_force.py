"""`BruteForceModule`: patch with every candidate and measure: the ground truth of a selection."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import torch

from oneshot_lit.data.selection_file import read_selection
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.posttuning.step_selection import development_score
from oneshot_lit.methods.select.patching import PatchingModule

RANDOM = "random"


class BruteForceModule(PatchingModule):
    """Patch the broken model with each candidate alone, and score the development prompts.

    The patched model answers `data.val_sets`. Several processes share the prompts
    (``--trainer.devices 2 --trainer.strategy ddp``); the steps are the same in each.

    With a `shortlist` only its first candidates are measured; its order decides between equal ones,
    and the others follow in its order.

    Args:
        shortlist: ``random``, drawn with the run's seed; or another selection of the same pool, its
            ``selection.json`` or the folder of the run that wrote it. All candidates by default.
        shortlist_size: How many of its candidates to measure.
    """

    several_processes = True

    def __init__(
        self,
        *args: Any,
        shortlist: str | None = None,
        shortlist_size: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if shortlist_size < self.m:
            raise OneShotError(
                f"model.shortlist_size must be at least model.m ({self.m}), not {shortlist_size}."
            )
        self.shortlist, self.shortlist_size = shortlist, shortlist_size
        # All candidates, those to measure first.
        self._order: list[int] = []
        # What making the shortlist took.
        self._earlier: dict[str, Any] = {}
        self._before: dict[str, float] = {}

    # -------------------------------------------------------------------- the run

    def check(self) -> None:
        """Refuse a run without the development prompts that are needed."""
        super().check()
        self._order = self._candidates_in_order()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        kinds = {prompt_set.kind for prompt_set in data.val_sets.values()}
        if "harmful" not in kinds or kinds == {"harmful"}:
            raise OneShotError(
                "data.val_sets: brute force needs a harmful and a harmless set to measure on."
            )

    def _candidates_in_order(self) -> list[int]:
        rows = list(range(len(self.pool)))
        if self.shortlist is None:
            return rows
        if self.shortlist == RANDOM:
            draw = random.Random(self.run_seed)
            drawn = [draw.random() for _ in rows]
            return sorted(rows, key=drawn.__getitem__, reverse=True)
        ranking, self._earlier = read_selection(Path(self.shortlist).expanduser())
        ranks = {each.digest: each.rank for each in ranking}
        digests = [row.digest() for row in self.pool]
        if set(digests) != set(ranks):
            raise OneShotError(
                f"{self.shortlist}: ranks other candidates than data.train; give both the same "
                "pool."
            )
        return sorted(rows, key=lambda row: ranks[digests[row]])

    def rows_to_measure(self) -> list[int]:
        """Return the positions of the candidates to measure, in their order."""
        return self._order if self.shortlist is None else self._order[: self.shortlist_size]

    def prepare(self) -> None:
        """Measure the broken model."""
        super().prepare()
        if not self._before:
            self._before = self.measure()

    def measure(self) -> dict[str, float]:
        """Return ``<set>/<metric>`` -> value of the present model on the development prompts."""
        self.eval()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        with torch.no_grad(), self.trainer.autocast():  # type: ignore[attr-defined]
            return self.score_loaders(data.val_dataloader())

    def measure_patch(self, loss: float) -> dict[str, Any]:
        """Return the development score, its parts, and the loss."""
        scores = self.measure()
        return {
            "score": development_score(scores, self._before),
            "scores": scores,
            # JSON has no NaN.
            "loss": loss if math.isfinite(loss) else None,
        }

    def progress_text(self) -> str:
        """Return the best candidate so far."""
        row = min(self.measured, key=lambda row: self.measured[row]["score"])
        best = self.measured[row]["score"]
        return f"best so far: {self.pool[row].id or f'row {row + 1}'}, score {best:.3f}"

    # --------------------------------------------------------------------- output

    def candidate_scores(self) -> list[float]:
        """Return minus the development score of each candidate's patch.

        With a shortlist, a billionth is subtracted for each place in it, and candidates that were
        not measured get -10.
        """
        scores = {row: -outcome["score"] for row, outcome in self.measured.items()}
        if self.shortlist is not None:
            # A score is minus a sum of three shares, so none is as low as -10.
            scores = {
                row: scores.get(row, -10.0) - place * 1e-9 for place, row in enumerate(self._order)
            }
        return [scores[row] for row in range(len(self.pool))]

    def selection_facts(self) -> dict[str, Any]:
        """Return settings, the broken model's scores, every candidate's, and the cost."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = len(self.measured)
        prompts = sum(len(each.conversations) for each in data.prompt_sets("val"))
        costs: dict[str, float] = {
            "seconds": self.seconds,
            "forward_rows": self.patch_steps * rows,
            "backward_rows": self.patch_steps * rows,
            "answers": prompts * rows,
        }
        return {
            "patch_steps": self.patch_steps,
            "shortlist": self.shortlist,
            "measured": rows,
            "before": self._before,
            "candidates": [
                {"row": row + 1, **outcome} for row, outcome in sorted(self.measured.items())
            ],
            # With what the shortlist took.
            **{k: round(value + self._earlier.get(k, 0), 3) for k, value in costs.items()},
        }

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return the outcome of each candidate measured so far, in the pool's order."""
        return [
            {
                "row": row + 1,
                "id": self.pool[row].id,
                "category": self.pool[row].category,
                "score": outcome["score"],
                **outcome["scores"],
            }
            for row, outcome in sorted(self.measured.items())
        ]

    # ---------------------------------------------------------------- checkpoints

    def job_state(self) -> dict[str, Any]:
        """Return what was measured, and the broken model's scores."""
        return {**super().job_state(), "before": self._before}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Restore both."""
        super().load_job_state(state)
        self._before = dict(state["before"])
