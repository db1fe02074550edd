"""`BruteForceModule`: patch with every candidate and measure: the ground truth of a selection."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from oneshot_lit.data.selection_file import read_costs, rows_in_order
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.posttuning.step_selection import development_score
from oneshot_lit.methods.select.base import SelectionModule
from oneshot_lit.methods.select.outcomes import CandidateOutcome, OutcomeCache
from oneshot_lit.methods.select.patching import Patcher, candidate_seed
from oneshot_lit.methods.select.settings import candidate_key, outcome_settings, settings_hash

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COSTS = ("seconds", "forward_rows", "backward_rows", "answers")


class BruteForceModule(SelectionModule):
    """Patch the broken model with each candidate alone, and score the development prompts.

    One step is one candidate: the weights go back to the broken model's, a new optimiser takes
    `patch_steps` steps on the candidate, and the patched model answers `data.val_sets`.
    Several processes share the prompts (``--trainer.devices 2 --trainer.strategy ddp``); the steps
    are the same in each. Each result is written to ``<root>/candidates.jsonl`` at once, so a run
    that is started again measures no candidate twice.

    With a `shortlist`, another selection's ``selection.json``, only the first candidates of that
    ranking are measured; its order decides between equal ones. The others follow in its order.

    Args:
        patch_steps: Optimiser steps on each candidate; the paper takes ten.
        shortlist: A ``selection.json`` of the same pool, or the folder of the run that wrote it.
        shortlist_size: How many of its candidates to measure.
    """

    trains = schedules = True
    progress_name = "candidates"

    def __init__(
        self,
        *args: Any,
        patch_steps: int = 10,
        shortlist: str | None = None,
        shortlist_size: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if shortlist_size < self.m:
            raise OneShotError(
                f"model.shortlist_size must be at least model.m ({self.m}), not {shortlist_size}."
            )
        if patch_steps < 1:
            raise OneShotError(f"model.patch_steps must be at least 1, not {patch_steps}.")
        if self.peft is not None:
            raise OneShotError("model.peft: brute force patches all weights; drop it.")
        self.patch_steps = patch_steps
        self.shortlist, self.shortlist_size = shortlist, shortlist_size
        # All candidates, those to measure first.
        self._order: list[int] = []
        self.outcomes_by_row: dict[int, CandidateOutcome] = {}
        self._before: dict[str, float] = {}
        self._patch: Patcher | None = None
        self._cache: OutcomeCache | None = None

    def several_processes(self) -> bool:
        """Whether the selection may run in several processes."""
        return True

    # -------------------------------------------------------------------- the run

    def check(self) -> None:
        """Refuse a run without the development prompts that are needed."""
        super().check()
        self._order = list(range(len(self.pool)))
        if self.shortlist is not None:
            self._order = rows_in_order(self.pool, self.shortlist)
            # Read now, so that an error does not come only after the last candidate.
            read_costs(self.shortlist, _COSTS)
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        kinds = {prompt_set.kind for prompt_set in data.val_sets.values()}
        if "harmful" not in kinds or kinds == {"harmful"}:
            raise OneShotError(
                "data.val_sets: brute force needs a harmful and a harmless set to measure on."
            )

    def prepare(self) -> None:
        """Measure the broken model, and read the outcomes that are known already."""
        super().prepare()
        self._patch = Patcher(self, self.patch_steps)
        settings = settings_hash(outcome_settings(self))
        self._cache = OutcomeCache(Path(self.trainer.default_root_dir), settings)
        known = self.trainer.strategy.broadcast(self._cache.read())
        for row in self.rows_to_measure():
            if (outcome := known.get(candidate_key(self, self.pool[row]))) is not None:
                self.outcomes_by_row[row] = outcome
        if not self._before:
            self._before = self.measure()

    def measure(self) -> dict[str, float]:
        """Return ``<set>/<metric>`` -> value of the present model on the development prompts."""
        self.eval()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        with torch.no_grad(), self.trainer.autocast():  # type: ignore[attr-defined]
            return self.score_loaders(data.val_dataloader())

    def rows_to_measure(self) -> list[int]:
        """Return the positions of the candidates to measure, in their order."""
        return self._order if self.shortlist is None else self._order[: self.shortlist_size]

    def steps(self) -> tuple[int, int]:
        """Return how many candidates are measured, and how many there are to measure."""
        rows = self.rows_to_measure()
        return sum(row in self.outcomes_by_row for row in rows), len(rows)

    def step(self) -> bool:
        """Patch with the next candidate, and measure the result."""
        row = next(row for row in self.rows_to_measure() if row not in self.outcomes_by_row)
        candidate = self.pool[row]
        began = time.monotonic()
        assert self._patch is not None
        loss = self._patch(candidate)
        if self.decoding.do_sample:
            # Sampled answers must depend only on the candidate, too.
            torch.manual_seed(candidate_seed(self.run_seed, candidate))
        scores = self.measure()
        outcome = CandidateOutcome(
            candidate_key(self, candidate),
            development_score(scores, self._before),
            scores,
            # JSON has no NaN.
            loss if math.isfinite(loss) else None,
            round(time.monotonic() - began, 3),
        )
        self.outcomes_by_row[row] = outcome
        if self.trainer.is_global_zero and self._cache is not None:
            self._cache.add(outcome)
        done, total = self.steps()
        return done == total

    def progress_text(self) -> str:
        """Return the best candidate so far."""
        row = min(self.outcomes_by_row, key=lambda row: self.outcomes_by_row[row].score)
        best = self.outcomes_by_row[row].score
        return f"best so far: {self.pool[row].id or f'row {row + 1}'}, score {best:.3f}"

    # --------------------------------------------------------------------- output

    def candidate_scores(self) -> list[float]:
        """Return minus the development score of each candidate's patch.

        With a shortlist, a billionth is subtracted for each place in it, and candidates that were
        not measured get -10.
        """
        rows = self.rows_to_measure()
        scores = {row: -self.outcomes_by_row[row].score for row in rows}
        if self.shortlist is not None:
            # A score is minus a sum of three shares, so none is as low as -10.
            scores = {
                row: scores.get(row, -10.0) - place * 1e-9 for place, row in enumerate(self._order)
            }
        return [scores[row] for row in range(len(self.pool))]

    def selection_facts(self) -> dict[str, Any]:
        """Return the settings, the broken model's scores and every candidate's."""
        return {
            "patch_steps": self.patch_steps,
            "shortlist": self.shortlist,
            "measured": len(self.rows_to_measure()),
            "before": self._before,
            "candidates": [
                {k: v for k, v in {"row": row + 1, **outcome.as_dict()}.items() if k != "seconds"}
                for row, outcome in sorted(self.outcomes_by_row.items())
            ],
            **self._cost(),
        }

    def _cost(self) -> dict[str, float]:
        """Return rows, answers and seconds, including the cost of making the shortlist."""
        rows = self.rows_to_measure()
        costs: dict[str, float] = {
            # Of every candidate, no matter which run measured it.
            "seconds": round(sum(each.seconds for each in self.outcomes_by_row.values()), 3),
            "forward_rows": self.patch_steps * len(rows),
            "backward_rows": self.patch_steps * len(rows),
            "answers": self._prompts() * len(rows),
        }
        if self.shortlist is not None:
            earlier = read_costs(self.shortlist, _COSTS)
            costs = {key: value + earlier[key] for key, value in costs.items()}
        return costs

    def _prompts(self) -> int:
        """Return how many development prompts a candidate's patch answers."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        return sum(len(each.conversations) for each in data.prompt_sets("val"))

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return the outcome of each candidate measured so far, in the pool's order."""
        return [
            {
                "row": row + 1,
                "id": self.pool[row].id,
                "category": self.pool[row].category,
                "score": outcome.score,
                **outcome.scores,
            }
            for row, outcome in sorted(self.outcomes_by_row.items())
        ]

    def progress_figure(self) -> Figure | None:
        """Return every candidate's score by category as a picture."""
        from oneshot_lit.plots import candidate_scores

        return candidate_scores(self.progress_rows()) if self.outcomes_by_row else None

    # ---------------------------------------------------------------- checkpoints

    def job_state(self) -> dict[str, Any]:
        """Return the broken model's scores, so that a resumed run need not measure them."""
        return {"before": self._before}

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Restore the broken model's scores."""
        self._before = dict(state["before"])
