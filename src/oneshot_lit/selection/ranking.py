"""How well a selector ranks candidates whose outcomes are known.

Scores are higher for better candidates, outcomes lower. An agreement of 1 is the right order, 0 is
chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from oneshot_lit.report.intervals import LEVEL, Estimate

Array = NDArray[np.float64]
RESAMPLES = 1000


def spearman(scores: Sequence[float], outcomes: Sequence[float], seed: int = 0) -> Estimate:
    """Return Spearman's rank correlation of scores with minus the outcomes.

    Equal values have the mean of their ranks. The interval is the percentile bootstrap's over the
    candidates.

    Args:
        scores: A selector's scores, (candidates,).
        outcomes: What patching with each came to, (candidates,).
        seed: Of the bootstrap.
    """
    return _estimate(scores, outcomes, seed, _spearman)


def kendall(scores: Sequence[float], outcomes: Sequence[float], seed: int = 0) -> Estimate:
    """Return Kendall's tau-b of scores with minus the outcomes, with a bootstrap interval.

    Args:
        scores: A selector's scores, (candidates,).
        outcomes: What patching with each came to, (candidates,).
        seed: Of the bootstrap.
    """
    return _estimate(scores, outcomes, seed, _kendall)


def _estimate(
    scores: Sequence[float],
    outcomes: Sequence[float],
    seed: int,
    statistic: Callable[[Array, Array, NDArray[np.int64]], Array],
) -> Estimate:
    x, y = np.asarray(scores, dtype=np.float64), -np.asarray(outcomes, dtype=np.float64)
    if len(x) != len(y):
        raise ValueError(f"{len(x)} scores of {len(y)} outcomes")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("a score or an outcome is not a number")
    n = len(x)
    # Without two different values there is no order.
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(None, None, None, n, 0)
    value = float(statistic(x, y, np.arange(n)[None])[0])
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    found = statistic(x, y, drawn)
    found = found[np.isfinite(found)]
    tail = (1 - LEVEL) / 2
    low, high = (float(each) for each in np.quantile(found, (tail, 1 - tail)))
    return Estimate(value, min(low, value), max(high, value), n, 0, "bootstrap")


def _spearman(x: Array, y: Array, drawn: NDArray[np.int64]) -> Array:
    a, b = (stats.rankdata(each[drawn], axis=1) for each in (x, y))
    a, b = (each - each.mean(1, keepdims=True) for each in (a, b))
    with np.errstate(invalid="ignore"):
        found: Array = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return found


def _kendall(x: Array, y: Array, drawn: NDArray[np.int64]) -> Array:
    # A resample is how often it holds each candidate; a candidate is tied with itself.
    counts = np.stack([np.bincount(each, minlength=len(x)) for each in drawn]).astype(np.float64)
    a, b = (np.sign(each[:, None] - each) for each in (x, y))
    agree, by_x, by_y = (((counts @ m) * counts).sum(1) for m in (a * b, a * a, b * b))
    with np.errstate(invalid="ignore"):
        found: Array = agree / np.sqrt(by_x * by_y)
    return found


def regret(pick: int, outcomes: Sequence[float]) -> float:
    """Return how much worse the picked candidate's outcome is than the best one's."""
    return outcomes[pick] - min(outcomes)


def chance_regret(outcomes: Sequence[float]) -> float:
    """Return the regret that a pick drawn at random has on average."""
    return sum(outcomes) / len(outcomes) - min(outcomes)


def as_good(pick: int, outcomes: Sequence[float]) -> float:
    """Return the share of the candidates that are at least as good as the picked one."""
    return sum(outcome <= outcomes[pick] for outcome in outcomes) / len(outcomes)
