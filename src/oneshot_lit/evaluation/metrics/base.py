"""`TextScore` and `TextRate`: torchmetrics classes over a pure score or test of each answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

# A score is kept as a whole part and two fractions of this many bits: sums of integers are exact,
# in any order and on accelerators without float64.
_BITS = 30


class TextScore(Metric):
    """Mean of a score of each answer; the same in any number of processes.

    Subclasses implement `scores`. The value is a float64 scalar, the mean of the scores rounded
    once; NaN without any scored answer. A score of NaN says "could not score": it is counted in
    `unscored` and no part of the mean.

    Attributes:
        needs_references: Whether every prompt must have a reference answer.
        skill: Whether it measures a skill to keep, from 0 (none) to 1 (all): the selection of a
            realignment step counts its losses, and the report of a study names them.
        last_scores: The scores of the answers of the last `update`, in their order.
    """

    full_state_update = False
    higher_is_better: bool | None = None
    needs_references: ClassVar[bool] = False
    skill: ClassVar[bool] = False
    sums: Tensor
    total: Tensor
    unscored: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.last_scores: list[float] = []
        for name, size in (("sums", (3,)), ("total", ()), ("unscored", ())):
            self.add_state(name, torch.zeros(size, dtype=torch.long), dist_reduce_fx="sum")

    def scores(self, outputs: Sequence[str], references: Sequence[str | None]) -> list[float]:
        """Score each answer; `references` are the expected answers, where known."""
        raise NotImplementedError

    def reference_problem(self, reference: str) -> str | None:
        """Say in a few words why nothing can be compared with a reference; None if it can be.

        Asked of every row before anything is answered.
        """
        return None

    def update(self, outputs: Sequence[str], references: Sequence[str | None]) -> None:
        """Score a batch of answers and add the scores to the sums."""
        if len(outputs) != len(references):
            raise ValueError(f"{len(outputs)} outputs but {len(references)} references")
        scores = self.scores(outputs, references)
        if len(scores) != len(outputs):
            raise ValueError(f"{type(self).__name__} gave {len(scores)} of {len(outputs)} scores")
        self.last_scores = scores
        scored = [score for score in scores if not math.isnan(score)]
        self.sums += torch.tensor(_in_parts(scored), device=self.sums.device)
        self.total += len(scored)
        self.unscored += len(scores) - len(scored)

    def compute(self) -> Tensor:
        """Return the mean."""
        whole, high, low = self.sums.tolist()
        count = int(self.total)
        exact = ((whole << _BITS) + high << _BITS) + low
        # On the CPU: not every accelerator has float64. Python divides integers with one rounding.
        mean = exact / (count << 2 * _BITS) if count else math.nan
        return torch.tensor(mean, dtype=torch.float64)


def _in_parts(scores: Sequence[float]) -> list[int]:
    """Return the sum of scores in parts that add up without rounding."""
    parts = [0, 0, 0]
    for score in scores:
        rest = round(math.ldexp(score, 2 * _BITS))
        for place in (2, 1):
            rest, part = divmod(rest, 1 << _BITS)
            parts[place] += part
        parts[0] += rest
    return parts


class TextRate(TextScore):
    """Share of answers for which `hits` is true; exact, since integers are counted.

    Subclasses implement `hits`. The value is in [0, 1].
    """

    def hits(self, outputs: Sequence[str], references: Sequence[str | None]) -> list[bool]:
        """Decide each answer; `references` are the expected answers, where known."""
        raise NotImplementedError

    def scores(self, outputs: Sequence[str], references: Sequence[str | None]) -> list[float]:
        """Return 1.0 for each hit and 0.0 for the others."""
        return [float(hit) for hit in self.hits(outputs, references)]


def known(references: Sequence[str | None]) -> list[str]:
    """Return the references; none may be missing."""
    present = [r for r in references if r is not None]
    if len(present) < len(references):
        raise ValueError("every prompt needs a reference answer for this metric")
    return present
