"""`InstanceSelectionModule`: choose the safety instance by bilevel optimisation."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.copies import TwoCopies
from oneshot_lit.methods.select.penalty import (
    PenaltyRecord,
    PenaltySettings,
    outer_step,
)
from oneshot_lit.methods.select.upper_level import UpperLevel


class InstanceSelectionModule(UpperLevel):
    """Choose instances by the first-order penalty form of the bilevel problem.

    Lower level: a copy of the broken model, trained on the weighted candidates. Upper level: on
    harmful prompts it should answer like the aligned model, on task rows like the broken one
    (arXiv 2601.01887). The paper does not give its algorithm; ours is V-PBGD (Shen & Chen 2023),
    see `oneshot_lit.methods.select.penalty`. The candidates' weights start equal; the candidates
    with the largest weights at the end are chosen.

    Args:
        penalty: Steps and step sizes.
    """

    trains = True

    def __init__(self, *args: Any, penalty: PenaltySettings | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.penalty = penalty or PenaltySettings()
        self.records: list[PenaltyRecord] = []
        self.diverged: str | None = None
        self._logits = torch.zeros(0, dtype=torch.float64)
        self._problem: TwoCopies
        self._resumed: dict[str, Any] | None = None

    def prepare(self) -> None:
        """Keep the references' distributions, and make the two copies."""
        super().prepare()
        upper = self.upper_terms()
        self._problem = TwoCopies(self.model, self.batches(self.pool), upper, self.optimizer)
        self._logits = torch.zeros(len(self.pool), dtype=torch.float64)
        if self._resumed is not None:
            self._logits = self._resumed["logits"]
            self._problem.restore(self._resumed["copies"])
            self._resumed = None

    # ---------------------------------------------------------------------- steps

    def steps(self) -> tuple[int, int]:
        """Return how many outer steps are done, and how many there are."""
        done = len(self.records)
        return done, self.penalty.steps if self.diverged is None else done

    def step(self) -> bool:
        """Take one outer step; one that is not finite ends the selection without counting."""
        step = len(self.records)
        try:
            self._logits, record = outer_step(self._problem, self._logits, step, self.penalty)
        except FloatingPointError as error:
            if not self.records:
                raise OneShotError(
                    f"model.optimizer.lr: the selection diverges at its first step ({error}); "
                    "lower it."
                ) from error
            self.diverged = f"{error}; the weights are those of step {step - 1}"
            rank_zero_warn(
                f"the selection diverges: {self.diverged}. Lower model.optimizer.lr or "
                "model.penalty.rate."
            )
            return True
        self.records.append(record)
        ended = len(self.records) >= self.penalty.steps
        first = self.records[0]
        if ended and record.f > first.f:
            rank_zero_warn(
                f"the upper objective rose from {first.f:.4g} to {record.f:.4g}: the choice says "
                "little. Lower model.optimizer.lr or model.penalty.last_gamma."
            )
        return ended

    def progress_text(self) -> str:
        """Return the last step's upper objective, and the candidate with the largest weight."""
        last = self.records[-1]
        # Rows of the pool count from 1, as everywhere.
        return f"f {last.f:.4g}, row {last.best + 1} with weight {last.weight:.3f}"

    def job_state(self) -> dict[str, Any]:
        """Return both copies, the logits of the candidates' weights, and the records."""
        return {
            "records": [asdict(record) for record in self.records],
            "diverged": self.diverged,
            "logits": self._logits,
            "copies": self._problem.state(),
        }

    def load_job_state(self, state: dict[str, Any]) -> None:
        """Restore the records; `prepare` restores the copies once the models are loaded."""
        self.records = [PenaltyRecord(**record) for record in state["records"]]
        self.diverged = state["diverged"]
        self._resumed = state

    # --------------------------------------------------------------------- output

    def candidate_scores(self) -> list[float]:
        """Return the candidates' weights; they add up to 1."""
        return [float(w) for w in torch.softmax(self._logits, 0)]

    def selection_facts(self) -> dict[str, Any]:
        """Return settings, cost and the last step."""
        return {
            "aligned": self.aligned,
            "task_weight": self.task_weight,
            "penalty": asdict(self.penalty),
            "steps": len(self.records),
            "diverged": self.diverged,
            "entropy": float(torch.special.entr(torch.softmax(self._logits, 0)).sum()),
            "last": asdict(self.records[-1]) if self.records else None,
            "forward_rows": self._problem.forwards + self.reference_rows,
            "backward_rows": self._problem.backwards,
            "answers": self.answers,
        }

    def progress_rows(self) -> list[dict[str, Any]]:
        """Return the record of each step; the best candidate by its row in the pool, and its id."""
        return [
            {
                **{k: v for k, v in asdict(record).items() if k not in ("best", "weight")},
                "row": record.best + 1,
                "id": self.pool[record.best].id,
                "weight": record.weight,
            }
            for record in self.records
        ]

    def finish(self, root: Path) -> None:
        """Write ``selection.json``, and the course of the selection as a table and a picture."""
        from oneshot_lit.plots import progress, save_figure

        super().finish(root)
        panels = {
            "objectives, nats a token": ("f", "g", "v"),
            "gap g - v, nats a token": ("gap",),
            "entropy of the weights, nats": ("entropy",),
            "largest weight": ("weight",),
        }
        equal = {"entropy of the weights, nats": ("all equal", math.log(len(self.pool)))}
        figure = progress(self.progress_rows(), "step", panels, equal)
        save_figure(figure, root / "selection.png")
