"""`Estimate`: a value, its 95 % interval, and how many answers it comes from."""

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
        unscored: Answers that could not be scored or judged; they are not part of the value.
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


def rate(hits: int, n: int, unscored: int = 0) -> Estimate:
    """Return the share of `hits` in `n` answers with Wilson's interval, uncorrected."""
    if n == 0:
        return Estimate(None, None, None, 0, unscored)
    ends = stats.binomtest(hits, n).proportion_ci(confidence_level=LEVEL, method="wilson")
    # At 0 and n hits an end is exactly 0 or 1; rounding may move it past the rate.
    low, high = min(float(ends.low), hits / n), max(float(ends.high), hits / n)
    return Estimate(hits / n, low, high, n, unscored, "wilson")


def mean(
    scores: Sequence[float], unscored: int = 0, bounds: tuple[float, float] | None = None
) -> Estimate:
    """Return the mean of scores with Student's t interval.

    There is no interval for a single score or for equal scores: a width of zero would claim a
    certainty that they do not give.

    Args:
        scores: One score for each answer.
        unscored: Answers without a score.
        bounds: The ends of the scale, which no interval crosses.
    """
    n = len(scores)
    if n == 0:
        return Estimate(None, None, None, 0, unscored)
    value = math.fsum(scores) / n
    if n == 1 or min(scores) == max(scores):
        return Estimate(value, None, None, n, unscored)
    ends = stats.t.interval(LEVEL, n - 1, loc=value, scale=stats.sem(scores))
    lowest, highest = bounds or (-math.inf, math.inf)
    low, high = max(lowest, float(ends[0])), min(highest, float(ends[1]))
    return Estimate(value, low, high, n, unscored, "t")


def from_stderr(value: float, stderr: float | None, n: int) -> Estimate:
    """Return a value with the normal interval of a standard error from another program."""
    if not stderr:
        return Estimate(value, None, None, n, 0)
    low, high = stats.norm.interval(LEVEL, loc=value, scale=stderr)
    return Estimate(value, float(low), float(high), n, 0, "stderr")


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided p-value of McNemar's exact test, a binomial test of the changes."""
    changed = gained + lost
    return float(stats.binomtest(gained, changed).pvalue) if changed else 1.0
