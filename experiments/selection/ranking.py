"""How well a selector ranks candidates with known outcomes.

Scores are higher for better candidates, outcomes lower. An agreement of 1 is the right order, 0 is
chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from oneshot_lit.evaluation.intervals import LEVEL, Estimate

Array = NDArray[np.float64]
RESAMPLES = 1000


def spearman(scores: Sequence[float], outcomes: Sequence[float], seed: int = 0) -> Estimate:
    """Return Spearman's rank correlation of scores with minus the outcomes.

    Equal values have the mean of their ranks. The interval is the percentile bootstrap's over the
    candidates.

    Args:
        scores: A selector's scores, (candidates,).
        outcomes: The outcome of patching with each, (candidates,).
        seed: Seed of the bootstrap.
    """
    return _estimate(scores, outcomes, seed, _spearman)


def kendall(scores: Sequence[float], outcomes: Sequence[float], seed: int = 0) -> Estimate:
    """Return Kendall's tau-b of scores with minus the outcomes, with a bootstrap interval.

    Args:
        scores: A selector's scores, (candidates,).
        outcomes: The outcome of patching with each, (candidates,).
        seed: Seed of the bootstrap.
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
    # Without two different values there is no ranking.
    if n < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return Estimate(None, None, None, n, 0)
    value = float(statistic(x, y, np.arange(n)[None])[0])
    drawn = np.random.default_rng(seed).integers(0, n, (RESAMPLES, n))
    resampled = statistic(x, y, drawn)
    # Resamples without a ranking, or all the same, say nothing about the spread.
    if not np.isfinite(resampled).all() or np.ptp(resampled) == 0:
        return Estimate(value, None, None, n, 0)
    tail = (1 - LEVEL) / 2
    low, high = (float(each) for each in np.quantile(resampled, (tail, 1 - tail)))
    return Estimate(value, min(low, value), max(high, value), n, 0, "bootstrap")


def _spearman(x: Array, y: Array, drawn: NDArray[np.int64]) -> Array:
    a, b = (stats.rankdata(each[drawn], axis=1) for each in (x, y))
    a, b = (each - each.mean(1, keepdims=True) for each in (a, b))
    with np.errstate(invalid="ignore"):
        correlations: Array = (a * b).sum(1) / np.sqrt((a * a).sum(1) * (b * b).sum(1))
    return correlations


def _kendall(x: Array, y: Array, drawn: NDArray[np.int64]) -> Array:
    # A resample is how often it holds each candidate; a candidate is tied with itself.
    counts = np.stack([np.bincount(each, minlength=len(x)) for each in drawn]).astype(np.float64)
    a, b = (np.sign(each[:, None] - each) for each in (x, y))
    agree, by_x, by_y = (((counts @ m) * counts).sum(1) for m in (a * b, a * a, b * b))
    with np.errstate(invalid="ignore"):
        correlations: Array = agree / np.sqrt(by_x * by_y)
    return correlations


def top(scores: Sequence[float]) -> list[int]:
    """Return the positions of the best score; several if they tie."""
    best = max(scores)
    return [i for i, score in enumerate(scores) if score == best]


def regret(scores: Sequence[float], outcomes: Sequence[float]) -> float:
    """Return how much worse the pick's outcome is than the best; the mean over tied picks."""
    picked = top(scores)
    return sum(outcomes[i] for i in picked) / len(picked) - min(outcomes)


def chance_regret(outcomes: Sequence[float]) -> float:
    """Return the mean regret of a random pick."""
    return sum(outcomes) / len(outcomes) - min(outcomes)


def as_good(outcome: float, outcomes: Sequence[float]) -> float:
    """Return the share of the candidates with an outcome at least as good as this one."""
    return sum(each <= outcome for each in outcomes) / len(outcomes)


PERMUTATIONS = 9999


def chance_tests(
    scores: Sequence[Sequence[float]], outcomes: Sequence[Sequence[float]], seed: int = 0
) -> tuple[float, float]:
    """Return two p-values: of the mean regret, and of the mean Spearman correlation.

    Two-sided permutation tests; the observed order counts as one of the permutations. Each
    permutation renames the candidates in the same way in all cases, because the cases are not
    independent: broken models are alike, and a rule may give the same scores in every case. A score
    that says nothing about the candidates does equally well under any names.

    Args:
        scores: A selector's scores in each case, (cases, candidates), of one pool.
        outcomes: The outcomes of patching in each case, (cases, candidates).
        seed: Seed of the permutations.
    """
    x, y = np.asarray(scores, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    rng = np.random.default_rng(seed)
    names = np.stack(
        [np.arange(x.shape[1])] + [rng.permutation(x.shape[1]) for _ in range(PERMUTATIONS)]
    )
    losses, ranks = np.zeros(len(names)), np.zeros(len(names))
    for score, outcome in zip(x, y, strict=True):
        losses += _shares(score)[names] @ outcome
        ranks += _unit(score)[names] @ _unit(-outcome)
    return _two_sided(-losses), _two_sided(ranks)


def _shares(scores: Array) -> Array:
    """Return each candidate's chance of being picked, with ties broken at random."""
    top = scores == scores.max()
    return top / top.sum()


def _unit(values: Array) -> Array:
    """Return centred ranks of length 1, zeros without an order; a correlation is a dot product."""
    ranks = stats.rankdata(values) - (len(values) + 1) / 2
    length = float(np.linalg.norm(ranks))
    return ranks / length if length else ranks


def _two_sided(values: Array) -> float:
    """Return the p-value of the first value among all of them."""
    # Equal sums may differ by rounding.
    slack = 1e-9
    above = (values >= values[0] - slack).mean()
    below = (values <= values[0] + slack).mean()
    return float(min(1.0, 2 * min(above, below)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted
