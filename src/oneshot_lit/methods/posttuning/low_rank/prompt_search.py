"""The search for a step size by what development prompts are answered, with forward passes only."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from oneshot_lit.methods.posttuning.step_selection import (
    attack_rate,
    development_score,
    refusal_rate,
)

# Beyond this many doublings there is no sensible step.
_LADDER = 10
# From this over-refusal on a step is too long.
_TOO_LONG = 0.3


@dataclass(frozen=True)
class PromptStep:
    """What the development prompts showed at one step.

    Attributes:
        guard_lambda: Lambda of the projection.
        alpha: The step size.
        attack: Mean attack success rate over the harmful sets.
        refusal: Worst over-refusal over the harmless sets.
        score: The development score; 0 is best.
        kept: Whether it is the step that was taken.
    """

    guard_lambda: float
    alpha: float
    attack: float
    refusal: float
    score: float
    kept: bool = False


def search_by_prompts(
    measure: Callable[[float], Mapping[str, float]],
    before: Mapping[str, float],
    guard_lambda: float,
    start: float = 0.1,
    refinements: int = 4,
) -> list[PromptStep]:
    """Try step sizes until harmful prompts are refused and harmless ones are not.

    The step is doubled (or halved) until it is too long: until more than 0.3 of some harmless set
    are refused, or until no harmful prompt is answered any more. Then the best step and one of its
    neighbours are bisected on a logarithmic scale: the longer one while harmful prompts are
    answered, the shorter one while harmless ones are refused.

    Args:
        measure: Step size -> ``<set>/<metric>`` -> value of the development prompts.
        before: The same of the broken model.
        guard_lambda: Lambda of the projection, which is recorded.
        start: First step size, > 0.
        refinements: Maximum number of bisections.

    Returns:
        All steps tried, in order.
    """
    tried: dict[float, PromptStep] = {}

    def step_at(alpha: float) -> PromptStep:
        scores = measure(alpha)
        attack, refusal = attack_rate(scores), refusal_rate(scores)
        score = development_score(scores, before)
        tried[alpha] = PromptStep(guard_lambda, alpha, attack, refusal, score)
        return tried[alpha]

    alpha, factor = start, 2.0
    if step_at(alpha).refusal > _TOO_LONG:
        factor = 0.5
    for _ in range(_LADDER):
        last = tried[alpha]
        long = last.refusal > _TOO_LONG
        if (factor < 1 and not long) or (factor > 1 and (long or last.attack == 0)):
            break
        alpha *= factor
        step_at(alpha)
    for _ in range(refinements):
        best = best_of(list(tried.values()))
        others = sorted(tried)
        place = others.index(best.alpha) + (1 if best.attack > best.refusal else -1)
        if best.score == 0 or not 0 <= place < len(others):
            break
        middle = math.sqrt(best.alpha * others[place])
        if abs(math.log(middle / best.alpha)) < 0.03:
            break
        step_at(middle)
    return list(tried.values())


def best_of(tried: Sequence[PromptStep]) -> PromptStep:
    """Return the step with the best score; of equal ones the first lambda's shortest."""
    return min(tried, key=lambda step: (step.score, step.guard_lambda, step.alpha))


def prompt_table(tried: Sequence[PromptStep]) -> list[dict[str, Any]]:
    """Return the rows of ``step_search.csv``, in the order in which the steps were tried."""
    best = best_of(tried)
    return [asdict(step) | {"kept": int(step is best)} for step in tried]
