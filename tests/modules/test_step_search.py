"""The step search on functions whose answer is known."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_lit.methods.posttuning.low_rank.step_search import search_step


@given(
    exponent=st.floats(0.5, 6),
    scale=st.floats(1e-4, 1e4),
    start=st.floats(1e-3, 1e2),
)
def test_largest_step_within_the_drift(exponent: float, scale: float, start: float) -> None:
    bound = 0.01
    calls = []

    def drift(alpha: float) -> float:
        calls.append(alpha)
        return float((alpha / scale) ** exponent)

    exact = scale * bound ** (1 / exponent)
    found, tried = search_step(drift, lambda alpha: True, bound, start)
    assert found is not None
    assert found.drift <= bound
    close = exact / 4 ** (2**-7) <= found.alpha <= exact * (1 + 1e-9)
    assert close or found.drift >= 0.9 * bound
    assert len(tried) == len(calls) <= 29


def test_refusal_is_asked_for_from_the_largest_step_down() -> None:
    asked = []

    def refused(alpha: float) -> bool:
        asked.append(alpha)
        return alpha < 0.3

    found, tried = search_step(lambda a: a * a, refused, 1.0, 0.01)
    assert found is not None
    assert found.alpha < 0.3
    assert asked == sorted(asked, reverse=True)
    assert not any(t.refused for t in tried if t.alpha > found.alpha)
    assert [t for t in tried if t.kept] == [found]


def test_no_step_is_refused() -> None:
    found, tried = search_step(lambda a: a * a, lambda a: False, 1.0)
    assert found is None
    assert tried
    assert not any(t.kept for t in tried)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0])
def test_drift_always_too_large(value: float) -> None:
    found, tried = search_step(lambda a: value, lambda a: True, 0.01)
    assert found is None
    assert all(t.drift > 0.01 for t in tried)


def test_step_without_any_drift_ends() -> None:
    found, tried = search_step(lambda a: 0.0, lambda a: a < 5, 0.01)
    assert found is not None
    assert found.alpha < 5
    assert len(tried) <= 21


def test_nothing_beyond_the_first_crossing_counts() -> None:
    """A drift that falls again further out, as of a model that answers everything alike."""
    found, _ = search_step(lambda a: 0.0 if a > 1.5 or a < 0.5 else 1.0, lambda a: True, 0.01)
    assert found is not None
    assert found.alpha < 0.5
