"""Intervals against formulas written another way."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_lit.evaluation.intervals import Estimate, from_stderr, mean, rate

Z = 1.959963984540054


def wilson(hits: int, n: int) -> tuple[float, float]:
    estimate = rate(hits, n)
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.low, estimate.high


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_solves_its_equation(case: tuple[int, int]) -> None:
    hits, n = case
    low, high = wilson(hits, n)
    p = hits / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    assert low == pytest.approx(middle - half, abs=1e-9)
    assert high == pytest.approx(middle + half, abs=1e-9)
    assert 0 <= low <= p <= high <= 1


def test_wilson_is_mirrored_and_never_empty() -> None:
    assert wilson(0, 20)[0] == 0
    assert wilson(0, 20)[1] == pytest.approx(0.16113, abs=1e-5)
    assert wilson(3, 20) == pytest.approx(tuple(1 - x for x in reversed(wilson(17, 20))))


def test_mean_has_the_t_interval_of_a_textbook() -> None:
    estimate = mean([1.0, 2.0, 3.0, 4.0, 5.0], unscored=2)
    # t(0.975, 4) = 2.776445, standard error sqrt(2.5 / 5).
    assert (estimate.low, estimate.high) == pytest.approx((3 - 1.963243, 3 + 1.963243), abs=1e-5)
    assert (estimate.value, estimate.n, estimate.unscored, estimate.method) == (3.0, 5, 2, "t")


@pytest.mark.parametrize("scores", [[0.3], [1.0, 1.0, 1.0]])
def test_mean_claims_no_certainty(scores: list[float]) -> None:
    estimate = mean(scores)
    assert (estimate.low, estimate.high, estimate.method) == (None, None, "none")


def test_mean_stays_on_its_scale() -> None:
    assert mean([0.0, 1.0, 1.0], bounds=(0.0, 1.0)).high == 1.0


def test_nothing_scored_has_no_value() -> None:
    assert rate(0, 0, 4) == mean([], 4) == Estimate(None, None, None, 0, 4)


def test_stderr() -> None:
    estimate = from_stderr(0.5, 0.1, 20)
    assert (estimate.low, estimate.high) == pytest.approx((0.5 - 0.1 * Z, 0.5 + 0.1 * Z))
    assert from_stderr(0.5, None, 20).low is None
