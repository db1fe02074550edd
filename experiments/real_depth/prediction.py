"""What predicts a selective repair: rank correlations of measures with the attainable refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from experiments.real_depth.measures import PREDICTORS
from experiments.selection.ranking import holm
from oneshot_lit.evaluation.intervals import LEVEL, Estimate

RESAMPLES = PERMUTATIONS = 2000
# With fewer cases a bootstrap of them has hardly any different samples.
_FEWEST_CASES = 4


def correlations(cases: Mapping[str, Any], repairs: Sequence[str]) -> dict[str, Any]:
    """Return repair -> predictor -> Spearman's correlation with the attainable refusal.

    Beside the estimate each has ``p`` of `permutation_p` and ``p_adjusted``, Holm's for the number
    of predictors of the repair; both None without a correlation.

    Args:
        cases: Case -> ``measures`` by seed and ``repairs``, as `compare` makes them.
        repairs: Names of the repairs.
    """
    table: dict[str, Any] = {}
    for repair in repairs:
        for name in PREDICTORS:
            groups = [pairs for case in cases.values() if (pairs := _pairs(case, repair, name))]
            if groups:
                estimate = clustered_spearman(groups).as_dict()
                tested = {"p": permutation_p(groups), "p_adjusted": None}
                table.setdefault(repair, {})[name] = estimate | tested
    for own in table.values():
        tested_rows = [row for row in own.values() if row["p"] is not None]
        adjusted = holm([row["p"] for row in tested_rows])
        for row, p in zip(tested_rows, adjusted, strict=True):
            row["p_adjusted"] = p
    return table


def _pairs(case: Mapping[str, Any], repair: str, name: str) -> list[tuple[float, float]]:
    """Return the measure and the attainable refusal of a case, seed by seed."""
    reached = case["repairs"].get(repair)
    if reached is None:
        return []
    return [
        (own[name], reached["attainable"]["by_seed"][seed])
        for seed, own in case["measures"].items()
        if seed in reached["attainable"]["by_seed"] and np.isfinite(own[name])
    ]


def clustered_spearman(groups: Sequence[Sequence[tuple[float, float]]], seed: int = 0) -> Estimate:
    """Return Spearman's correlation over all pairs, with a bootstrap interval over the groups.

    Models of one case differ in the seed alone, so they are no independent evidence: whole cases
    are drawn.

    Args:
        groups: For each case its pairs of a measure and an outcome.
        seed: Of the bootstrap.

    Returns:
        No value where the measure or the outcome is the same everywhere; no interval with fewer
        than four cases.
    """
    pairs = [pair for group in groups for pair in group]
    value = _spearman(pairs)
    if value is None or len(groups) < _FEWEST_CASES:
        return Estimate(value, None, None, len(pairs), 0)
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(groups), len(groups))
        sample = _spearman([pair for i in chosen for pair in groups[i]])
        # A sample without any order says nothing.
        if sample is not None:
            drawn.append(sample)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, (tail, 1 - tail))
    return Estimate(value, float(low), float(high), len(pairs), 0, "bootstrap")


def permutation_p(groups: Sequence[Sequence[tuple[float, float]]], seed: int = 0) -> float | None:
    """Return the two-sided p-value of Spearman's correlation against chance.

    The measures of whole cases change places, seed by seed, so that the likeness of models of one
    case is not taken for evidence. A bootstrap of few cases is too narrow; this is exact.

    Args:
        groups: For each case its pairs of a measure and an outcome.
        seed: Of the permutations.

    Returns:
        None without a correlation, or if the cases have different numbers of models.
    """
    pairs = [pair for group in groups for pair in group]
    if len({len(group) for group in groups}) != 1 or _spearman(pairs) is None:
        return None
    x, y = np.moveaxis(np.asarray(groups, dtype=np.float64), -1, 0)
    # Permuting does not change the ranks.
    x, y = (stats.rankdata(each).reshape(each.shape) for each in (x, y))
    x, y = x - x.mean(), y - y.mean()
    rng = np.random.default_rng(seed)
    own = abs((x * y).sum())
    chance = [abs((x[rng.permutation(len(x))] * y).sum()) for _ in range(PERMUTATIONS)]
    return float((1 + sum(each >= own - 1e-9 for each in chance)) / (1 + PERMUTATIONS))


def _spearman(pairs: Sequence[tuple[float, float]]) -> float | None:
    x, y = np.asarray(pairs, dtype=np.float64).reshape(-1, 2).T
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(stats.spearmanr(x, y).statistic)
