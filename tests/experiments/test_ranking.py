"""Rank correlations against SciPy's, their intervals against theory, and the regret of a pick."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from experiments.selection.ranking import (
    as_good,
    chance_regret,
    chance_tests,
    holm,
    kendall,
    regret,
    spearman,
    top,
)


def drawn(seed: int, ties: bool) -> tuple[list[float], list[float]]:
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=60)
    outcomes = -scores + draw.normal(size=60)
    if ties:
        # As a ground truth has them: many candidates are equally good.
        scores, outcomes = scores.round(), outcomes.round().clip(0)
    return scores.tolist(), outcomes.tolist()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_values_are_scipys(seed: int, ties: bool) -> None:
    scores, outcomes = drawn(seed, ties)
    better = [-o for o in outcomes]
    assert spearman(scores, outcomes).value == pytest.approx(
        stats.spearmanr(scores, better).statistic, abs=1e-12
    )
    assert kendall(scores, outcomes).value == pytest.approx(
        stats.kendalltau(scores, better, variant="b").statistic, abs=1e-12
    )


@pytest.mark.parametrize("measure", [spearman, kendall])
def test_the_interval_is_a_bootstrap_over_candidates(measure) -> None:
    scores, outcomes = drawn(0, ties=False)
    found = measure(scores, outcomes)
    assert found.low < found.value < found.high
    scipys = {
        spearman: lambda x, y: stats.spearmanr(x, y).statistic,
        kendall: lambda x, y: stats.kendalltau(x, y).statistic,
    }[measure]
    reference = stats.bootstrap(
        (scores, [-o for o in outcomes]),
        scipys,
        paired=True,
        vectorized=False,
        n_resamples=400,
        method="percentile",
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert found.low == pytest.approx(reference.low, abs=0.06)
    assert found.high == pytest.approx(reference.high, abs=0.06)
    assert measure(scores, outcomes) == found


def test_the_right_order_is_one_and_the_reverse_minus_one() -> None:
    outcomes = [0.3, 0.1, 0.2, 0.0]
    assert spearman([-o for o in outcomes], outcomes).value == pytest.approx(1)
    assert kendall(outcomes, outcomes).value == pytest.approx(-1)


def test_without_an_order_there_is_no_agreement() -> None:
    assert spearman([1.0, 1.0, 1.0], [0.0, 0.1, 0.2]).value is None
    assert kendall([1.0, 2.0, 3.0], [0.5, 0.5, 0.5]).value is None


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="not a number"):
        spearman([1.0, math.nan], [0.0, 1.0])
    with pytest.raises(ValueError, match="2 scores of 3 outcomes"):
        kendall([1.0, 2.0], [0.0, 1.0, 2.0])


def test_regret() -> None:
    outcomes = [0.2, 0.0, 0.4, 0.0]
    assert regret([3.0, 2.0, 1.0, 0.0], outcomes) == pytest.approx(0.2)
    # Of a tie, what a pick by lot loses on average.
    assert regret([3.0, 3.0, 1.0, 0.0], outcomes) == pytest.approx(0.1)
    assert top([1.0, 2.0, 2.0]) == [1, 2]
    assert chance_regret(outcomes) == pytest.approx(0.15)
    assert as_good(0.2, outcomes) == 0.75
    assert as_good(0.0, outcomes) == 0.5


def test_a_spread_that_resamples_cannot_show_is_left_out() -> None:
    assert spearman([1.0, 2.0], [1.0, 0.0]).low is None
    lone = [0.0] * 20
    lone[3] = 1.0
    assert kendall(lone, list(range(20))).low is None


@pytest.mark.slow
def test_p_values_are_uniform_under_chance() -> None:
    """Cases that are copies of each other are no more evidence than one."""
    draw = np.random.default_rng(2)
    outcomes = draw.exponential(size=40)
    found = []
    for _ in range(120):
        scores = draw.normal(size=40)
        found.append(chance_tests([scores] * 5, [outcomes] * 5, seed=1))
    for place in (0, 1):
        p = np.array([each[place] for each in found])
        # Of 120 draws at 5 %: 6 expected, 14 or more in one of a thousand.
        assert (p < 0.05).sum() < 14
        assert 0.35 < p.mean() < 0.75


def test_p_values_of_a_perfect_and_of_the_worst_ranking() -> None:
    draw = np.random.default_rng(3)
    outcomes = [draw.normal(size=60).tolist() for _ in range(3)]
    right = [[-o for o in each] for each in outcomes]
    assert chance_tests(right, outcomes)[1] == pytest.approx(2e-4)
    assert chance_tests(outcomes, outcomes)[1] == pytest.approx(2e-4)
    # The best of 60 in three cases alike.
    assert chance_tests([right[0]] * 3, [outcomes[0]] * 3)[0] == pytest.approx(2 / 60, rel=0.2)
    assert chance_tests([[1.0] * 60] * 3, outcomes) == (1.0, 1.0)


def test_holm() -> None:
    # By hand: 0.01 * 3, then 0.02 * 2, then the larger of that and 0.03.
    assert holm([0.03, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
