"""Means of scores: exact, in any order, and never of what could not be scored."""

from __future__ import annotations

import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oneshot_lit.evaluation.metrics import METRICS, TextRate, TextScore


class Written(TextScore):
    """The score that an answer spells out."""

    def scores(self, outputs, references):
        return [float(output) for output in outputs]


def mean_of(scores: list[float], chunks: int = 1) -> float:
    metric = Written()
    size = -(-len(scores) // chunks)
    for start in range(0, len(scores), size):
        part = [repr(score) for score in scores[start : start + size]]
        metric.update(part, [None] * len(part))
    return float(metric.compute())


# Not below: a score keeps 60 binary places.
SCORES = st.floats(-1e6, 1e6).map(lambda x: 0.0 if abs(x) < 2**-8 else x)


@settings(max_examples=100, deadline=None)
@given(st.lists(SCORES, min_size=1, max_size=40), st.integers(1, 5), st.randoms())
def test_the_mean_is_rounded_once_in_any_order(scores, chunks: int, rng: random.Random) -> None:
    exact = float(sum(map(Fraction, scores)) / len(scores))
    assert mean_of(scores) == exact
    rng.shuffle(scores)
    assert mean_of(scores, chunks) == exact


def test_many_small_scores_do_not_drift() -> None:
    # Adding 0.1 in float64 is off by 1e-9 after a million times, in float32 by 1e-3.
    metric = Written()
    for _ in range(100):
        metric.update(["0.1"] * 1000, [None] * 1000)
    assert float(metric.compute()) == pytest.approx(0.1, abs=2**-60)


def test_what_could_not_be_scored_is_counted_and_no_part_of_the_mean() -> None:
    metric = Written()
    metric.update(["1", "nan", "0.5"], [None] * 3)
    assert float(metric.compute()) == 0.75
    assert (int(metric.total), int(metric.unscored)) == (2, 1)
    nothing = Written()
    nothing.update(["nan"], [None])
    assert math.isnan(float(nothing.compute()))
    assert nothing.compute().dtype == torch.float64


def test_an_infinite_score_and_a_missing_one_are_faults() -> None:
    with pytest.raises(OverflowError):
        Written().update(["inf"], [None])

    class Short(TextScore):
        def scores(self, outputs, references):
            return [1.0]

    with pytest.raises(ValueError, match="Short gave 1 of 2 scores"):
        Short().update(["a", "b"], [None, None])


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_gives_its_score_of_each_answer(name: str) -> None:
    outputs = ["#### 4", "sorry", "SELECT a FROM t", "#### 5"]
    references = ["4", "5", "6", "7"] if name.startswith("gsm8k") else ["SELECT a FROM t"] * 4
    metric = METRICS[name]()
    scores = metric.scores(outputs, references)
    assert [type(score) for score in scores] == [float] * 4
    metric.update(outputs, references)
    assert float(metric.compute()) == pytest.approx(sum(scores) / 4, abs=1e-15)
    assert 0 < sum(scores) < 4 or name in ("asr_keyword", "asr_keyword_prefix", "harmful_correct")


def test_a_rate_of_ones_own_needs_only_hits_and_has_scores() -> None:
    class Short(TextRate):
        def hits(self, outputs, references):
            return [len(output) < 3 for output in outputs]

    assert Short().scores(["a", "long"], [None, None]) == [1.0, 0.0]
