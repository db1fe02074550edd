"""`Estimate`: a value, its 95 % interval, and how many answers stand behind it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from scipy import stats

LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A value with its interval.

    Attributes:
        value: The rate or mean; None if nothing could be scored.
        low: Lower end of the 95 % interval; None where there is none.
        high: Upper end.
        n: Answers that were scored.
        unscored: Answers that could not be scored or judged; they are in no value.
        method: ``wilson``, ``t``, ``stderr`` or ``none``.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    unscored: int
    method: str = "none"

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def wilson(hits: int, n: int) -> tuple[float, float]:
    """Return Wilson's score interval of a rate, without continuity correction."""
    found = stats.binomtest(hits, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    # At 0 and n hits an end is exactly 0 or 1; rounding may leave it beside.
    return min(float(found.low), hits / n), max(float(found.high), hits / n)


def rate(hits: int, n: int, unscored: int = 0) -> Estimate:
    """Return the share of `hits` in `n` answers with Wilson's interval."""
    if n == 0:
        return Estimate(None, None, None, 0, unscored)
    return Estimate(hits / n, *wilson(hits, n), n, unscored, "wilson")


def mean(
    scores: Sequence[float], unscored: int = 0, bounds: tuple[float, float] | None = None
) -> Estimate:
    """Return the mean of scores with Student's t interval.

    There is no interval if there is one score, or if all are the same: a width of zero would claim
    a certainty that they do not give.

    Args:
        scores: One score an answer.
        unscored: Answers without a score.
        bounds: The scale's ends, which no interval passes.
    """
    n = len(scores)
    if n == 0:
        return Estimate(None, None, None, 0, unscored)
    value = math.fsum(scores) / n
    if n == 1 or min(scores) == max(scores):
        return Estimate(value, None, None, n, unscored)
    spread = math.sqrt(math.fsum((s - value) ** 2 for s in scores) / (n - 1) / n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * spread
    low, high = bounds or (-math.inf, math.inf)
    return Estimate(value, max(low, value - half), min(high, value + half), n, unscored, "t")


def from_stderr(value: float, stderr: float | None, n: int) -> Estimate:
    """Return a value with the normal interval of a standard error that another program gave."""
    if not stderr:
        return Estimate(value, None, None, n, 0)
    half = float(stats.norm.ppf((1 + LEVEL) / 2)) * stderr
    return Estimate(value, value - half, value + half, n, 0, "stderr")


def apart(a: Estimate, b: Estimate) -> bool | None:
    """Say whether two intervals have nothing in common; None where one is missing."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return None
    return a.high < b.low or b.high < a.low
