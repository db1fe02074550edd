"""The search for a step size by what development prompts are answered, with forward passes only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from oneshot_lit.io.files import write_rows_atomically
from oneshot_lit.methods.posttuning.low_rank.step_search import SEARCH_PICTURE, SEARCH_TABLE
from oneshot_lit.methods.posttuning.step_selection import (
    attack_rate,
    development_score,
    refusal_rate,
)

# The size of the first step; on SmolLM2-135M the best ones are between 0.4 and 1.
_FIRST = 0.4
# Beyond this many doublings there is no sensible step.
_LADDER = 10
# How much more of the attack a step leaves, at least, that is worse and not just noise.
_WORSE = 0.1


@dataclass(frozen=True)
class PromptStep:
    """What the development prompts showed at one step.

    Attributes:
        guard_lambda: Lambda of the projection.
        alpha: The step size.
        attack: Mean attack success rate over the harmful sets.
        refusal: Worst over-refusal over the harmless sets.
        score: The development score; 0 is best.
    """

    guard_lambda: float
    alpha: float
    attack: float
    refusal: float
    score: float

    def __str__(self) -> str:
        return (
            f"{self.attack:.1%} of the harmful development prompts answered, up to "
            f"{self.refusal:.1%} of the harmless refused"
        )


def search_by_prompts(
    measure: Callable[[float], Mapping[str, float]],
    before: Mapping[str, float],
    guard_lambda: float,
    start: float = 0.1,
    refinements: int = 4,
    tell: Callable[[PromptStep], None] = lambda step: None,
) -> list[PromptStep]:
    """Try step sizes until harmful prompts are refused and harmless ones are not.

    A step is too long if it refuses more harmless prompts than the broken model, and more of them
    than it leaves harmful ones answered. The first step is doubled until it is too long, or two
    steps in a row leave more harmful prompts answered than a shorter one did; if it is too long
    already, it is halved until it is not. Then the gap between both kinds of steps is bisected on a
    logarithmic scale. A step that refuses all harmful prompts, no more harmless ones than before,
    and costs no skill, ends the search.

    Args:
        measure: Step size -> ``<set>/<metric>`` -> value of the development prompts.
        before: The same of the broken model.
        guard_lambda: Lambda of the projection, which is recorded.
        start: First step size, > 0.
        refinements: Maximum number of bisections.
        tell: Told each step.

    Returns:
        All steps tried, in order.
    """
    tried: list[PromptStep] = []
    usual = refusal_rate(before)

    def step_at(alpha: float) -> PromptStep:
        scores = measure(alpha)
        attack, refusal = attack_rate(scores), refusal_rate(scores)
        score = development_score(scores, before)
        tried.append(PromptStep(guard_lambda, alpha, attack, refusal, score))
        tell(tried[-1])
        return tried[-1]

    def too_long(step: PromptStep) -> bool:
        return step.refusal > usual and step.attack < step.refusal - usual

    def perfect(step: PromptStep) -> bool:
        return step.attack == 0 and step.score <= usual

    step = step_at(start)
    halve = too_long(step)
    for _ in range(_LADDER):
        if perfect(step) or too_long(step) != halve or (not halve and _past_its_best(tried)):
            break
        step = step_at(step.alpha * (0.5 if halve else 2.0))
    short = [step.alpha for step in tried if not too_long(step)]
    long = [step.alpha for step in tried if too_long(step)]
    for _ in range(refinements if short and long else 0):
        if any(perfect(step) for step in tried):
            break
        step = step_at(math.sqrt(max(short) * min(long)))
        (long if too_long(step) else short).append(step.alpha)
    return tried


def _past_its_best(tried: Sequence[PromptStep]) -> bool:
    """Whether the attack comes back: the last steps break the model and not the attack."""
    least = min(step.attack for step in tried)
    return len(tried) > 2 and all(step.attack >= least + _WORSE for step in tried[-2:])


def _say(step: PromptStep) -> None:
    rank_zero_info(f"lambda {step.guard_lambda:g}, alpha {step.alpha:.3g}: {step}")


class PromptChoice:
    """The steps that were tried for all lambdas, and the adapter of the best one.

    Attributes:
        tried: The steps, in order.
        before: The development scores of the broken model.
    """

    def __init__(self) -> None:
        self.tried: list[PromptStep] = []
        self.before: dict[str, float] = {}
        self._adapter: dict[str, Tensor] = {}

    @property
    def best(self) -> PromptStep:
        """The step with the best score; of equal ones that of the smallest lambda and size."""
        return min(self.tried, key=lambda step: (step.score, step.guard_lambda, step.alpha))

    def __str__(self) -> str:
        if not self.tried:
            return ""
        return (
            f"lambda {self.best.guard_lambda:g}, alpha {self.best.alpha:.3g} of {len(self.tried)} "
            f"steps: {self.best}"
        )

    def search(
        self,
        guard_lambda: float,
        write: Callable[[float], None],
        measure: Callable[[], dict[str, float]],
        adapter: Mapping[str, Tensor],
    ) -> None:
        """Try steps for one lambda, from the best of the lambdas before; keep the best adapter.

        Args:
            guard_lambda: Lambda of the projection.
            write: Writes a step of a size into the adapter.
            measure: Returns the development scores of the adapter.
            adapter: Its weights by name.
        """

        def measure_at(alpha: float) -> dict[str, float]:
            write(alpha)
            return measure()

        self.before = self.before or measure_at(0.0)
        start = self.best.alpha if self.tried else _FIRST
        self.tried += search_by_prompts(measure_at, self.before, guard_lambda, start, tell=_say)
        if self.best.guard_lambda == guard_lambda:
            write(self.best.alpha)
            self._adapter = {name: w.detach().cpu().clone() for name, w in adapter.items()}

    @torch.no_grad()
    def take(self, adapter: Mapping[str, Tensor]) -> None:
        """Give the adapter the weights of the best step."""
        for name, weight in adapter.items():
            weight.copy_(self._adapter[name])

    def table(self) -> list[dict[str, Any]]:
        """Return the rows of ``step_search.csv``, in the order in which the steps were tried."""
        return [asdict(step) | {"kept": int(step is self.best)} for step in self.tried]

    def write(self, root: Path) -> None:
        """Write table and picture into a folder."""
        from oneshot_lit.plots import prompt_search_curve, save_figure

        rows = self.table()
        save_figure(prompt_search_curve(rows), root / SEARCH_PICTURE)
        write_rows_atomically(root / SEARCH_TABLE, rows)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values and tensors, safe to load with ``weights_only=True``."""
        tried = [asdict(step) for step in self.tried]
        return {"tried": tried, "before": self.before, "adapter": self._adapter}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take up what `as_dict` returned."""
        self.tried = [PromptStep(**step) for step in state["tried"]]
        self.before, self._adapter = state["before"], state["adapter"]
