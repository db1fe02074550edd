"""Which realignment step is kept, and when to stop."""

from __future__ import annotations

import itertools
import random
from dataclasses import asdict

import pytest

from oneshot_lit.methods.posttuning.step_selection import (
    StepRecord,
    StepSelector,
    development_score,
    overshoots,
)


def run(scores: list[float], **arguments) -> StepSelector:
    selector = StepSelector(**arguments)
    for step, score in enumerate(scores):
        selector.see(StepRecord(step, score, {}))
    return selector


# --------------------------------------------------------------------- the score


@pytest.mark.parametrize(
    ("scores", "before", "expected"),
    [
        ({}, {}, 0.0),
        ({"harmful/asr_keyword": 0.4}, {}, 0.4),
        # Several attacks are averaged, of several over-refusals the worst counts.
        ({"a/asr_keyword": 0.4, "b/asr_keyword": 0.8}, {}, 0.6),
        ({"a/over_refusal": 0.1, "b/over_refusal": 0.3}, {}, 0.3),
        # A task counts by what it lost, a gain is no credit.
        ({"a/exact_match": 0.7}, {"a/exact_match": 0.9}, 0.2),
        ({"a/exact_match": 0.9}, {"a/exact_match": 0.7}, 0.0),
        (
            {"a/exact_match": 0.9, "b/exact_match": 0.1},
            {"a/exact_match": 0.2, "b/exact_match": 0.4},
            0.3,
        ),
        # Every task score is a skill, and the worst loss counts.
        ({"a/rouge1": 0.5, "b/gsm8k_strict": 0.3}, {"a/rouge1": 0.9, "b/gsm8k_strict": 0.4}, 0.4),
        ({"a/sql_match": 0.5, "b/rouge1": 0.8}, {"a/sql_match": 0.8, "b/rouge1": 0.9}, 0.3),
        ({"a/contains_reference": 0.5}, {"a/contains_reference": 0.75}, 0.25),
        # A mean wavers: less than a hundredth is no loss, and of a rate every answer is.
        ({"a/rouge1": 0.591}, {"a/rouge1": 0.6}, 0.0),
        ({"a/rouge1": 0.588}, {"a/rouge1": 0.6}, 0.012),
        ({"a/exact_match": 0.591}, {"a/exact_match": 0.6}, 0.009),
        # A score that is missing for every answer says nothing.
        ({"a/rouge1": float("nan")}, {"a/rouge1": 0.6}, 0.0),
        # Without an earlier value nothing was lost.
        ({"a/exact_match": 0.1}, {}, 0.0),
        # Other metrics are shown, not selected by.
        ({"a/asr_keyword_prefix": 1.0, "a/harmful_correct": 1.0}, {}, 0.0),
        (
            {
                "harmful/asr_keyword": 0.25,
                "benign/over_refusal": 0.125,
                "near/over_refusal": 0.5,
                "benign/exact_match": 0.5,
            },
            {"benign/exact_match": 1.0, "harmful/asr_keyword": 1.0},
            0.25 + 0.5 + 0.5,
        ),
    ],
)
def test_development_score(scores, before, expected: float) -> None:
    assert development_score(scores, before) == pytest.approx(expected, abs=1e-12)


# ------------------------------------------------------------------ the best step


@pytest.mark.parametrize(
    ("scores", "margin", "best"),
    [
        ([1.0, 0.5, 0.2, 0.4], 0, 2),
        ([1.0, 0.5, 0.2, 0.4, 0.1], 0, 4),
        ([1.0], 1, 0),
        ([1.0, 1.2, 1.1], 1, 0),
        # A margin walks into a run of equals, but never out of it.
        ([1.0, 0.0, 0.0, 0.0, 0.0], 0, 1),
        ([1.0, 0.0, 0.0, 0.0, 0.0], 1, 2),
        ([1.0, 0.0, 0.0, 0.0, 0.0], 2, 3),
        ([1.0, 0.0, 0.0, 0.3], 3, 2),
        ([1.0, 0.0, 0.3], 1, 1),
        # A later tie, after the run was broken, is another window.
        ([1.0, 0.0, 0.3, 0.0], 3, 1),
        ([1.0, 0.5, 0.5, 0.2, 0.2, 0.2], 1, 4),
        # A tie with the broken model is no repair.
        ([1.0, 1.0, 1.0], 3, 0),
        ([0.5, 0.5, 0.4, 0.4], 1, 3),
        # Differences below the tolerance are none.
        ([1.0, 0.2, 0.2 - 1e-12, 0.2 + 1e-12], 0, 1),
        ([1.0, 0.2, 0.2 - 1e-12, 0.2 + 1e-12], 2, 3),
        ([1.0, 1.0 - 1e-12], 1, 0),
    ],
)
def test_best_step(scores: list[float], margin: int, best: int) -> None:
    selector = run(scores, margin=margin)
    assert selector.best is selector.history[best]


def test_see_says_when_the_weights_are_to_be_kept() -> None:
    selector = StepSelector(margin=1)
    scores = [1.0, 0.5, 0.2, 0.2, 0.2, 0.1, 0.3]
    kept = [selector.see(StepRecord(step, s, {})) for step, s in enumerate(scores)]
    assert kept == [True, True, True, True, False, True, False]


@pytest.mark.parametrize("seed", range(20))
def test_best_is_never_worse_than_any_step_seen(seed: int) -> None:
    rng = random.Random(seed)
    scores = [rng.choice([0.0, 0.25, 0.5, 0.75, 1.0]) for _ in range(12)]
    selector = StepSelector(margin=rng.randint(0, 3))
    last_kept = None
    for step, score in enumerate(scores):
        if selector.see(StepRecord(step, score, {})):
            last_kept = step
        assert selector.best.score == min(scores[: step + 1])
        # The kept weights are always those of the best record.
        assert selector.best.step == last_kept


def test_steps_need_not_be_counted_one_by_one() -> None:
    selector = StepSelector()
    for step, score in ((0, 1.0), (5, 0.2), (10, 0.4)):
        selector.see(StepRecord(step, score, {}))
    assert selector.best.step == 5


def test_a_step_validated_again_after_resuming_counts_once() -> None:
    selector = run([1.0, 0.5, 0.2])
    assert not selector.see(StepRecord(2, 0.1, {}))
    assert len(selector.history) == 3
    assert selector.best.score == 0.2


# ----------------------------------------------------------------------- stopping


@pytest.mark.parametrize(
    ("scores", "patience", "stops_after"),
    [
        ([1.0, 0.5, 0.2, 0.3, 0.3, 0.3], 2, 4),
        ([1.0, 0.5, 0.2, 0.3, 0.1, 0.3, 0.3], 2, 6),
        ([1.0, 0.5, 0.4, 0.3, 0.2], 1, None),
        # Ties do not win more time, though the margin may move the kept step.
        ([1.0, 0.0, 0.0, 0.0, 0.0], 3, 4),
        # Nothing has been repaired yet: go on, however long.
        ([1.0] * 9, 2, None),
        ([1.0, 1.1, 1.2, 1.3, 1.4], 1, None),
        ([1.0, 1.1, 1.1, 0.9, 1.0], 1, 4),
    ],
)
def test_patience(scores: list[float], patience: int, stops_after: int | None) -> None:
    selector = StepSelector(patience=patience)
    stops = []
    for step, score in enumerate(scores):
        selector.see(StepRecord(step, score, {}))
        if selector.should_stop:
            stops.append(step)
    assert (stops[0] if stops else None) == stops_after


def test_an_empty_selector_neither_improved_nor_stops() -> None:
    assert StepSelector().best is None
    assert not StepSelector().improved
    assert not StepSelector().should_stop


# ------------------------------------------------------------------------- replay


@pytest.mark.parametrize("seed", range(10))
def test_replay_gives_the_same_state_as_the_unbroken_run(seed: int) -> None:
    rng = random.Random(seed)
    scores = [rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(10)]
    arguments = {"patience": rng.randint(1, 4), "margin": rng.randint(0, 2)}
    whole = run(scores, **arguments)
    for cut in range(len(scores) + 1):
        saved = [asdict(record) for record in run(scores[:cut], **arguments).records]
        resumed = StepSelector(**arguments)
        for record in saved:
            resumed.see(StepRecord(**record))
        assert resumed == run(scores[:cut], **arguments)
        for later in itertools.islice(whole.history, cut, None):
            resumed.see(later)
        assert resumed == whole
        assert (resumed.should_stop, resumed.improved) == (whole.should_stop, whole.improved)


# ------------------------------------------------------------------ parts of steps


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ((1.0, 0.0), (0.0, 0.5), True),
        ((0.4, 0.1), (0.2, 0.2), True),
        # The attack was already gone, or has not moved, or nobody is newly refused.
        ((0.0, 0.0), (0.0, 0.5), False),
        ((1.0, 0.0), (1.0, 0.5), False),
        ((1.0, 0.0), (0.0, 0.0), False),
        ((1.0, 0.5), (0.0, 0.5), False),
    ],
)
def test_overshoots(before, after, expected: bool) -> None:
    def rates(pair: tuple[float, float]) -> dict[str, float]:
        return {"harmful/asr_keyword": pair[0], "benign/over_refusal": pair[1]}

    assert overshoots(rates(before), rates(after)) is expected


def test_part_of_a_step_can_be_the_best_and_replays() -> None:
    selector = run([1.0, 0.7, 0.6], patience=2)
    assert selector.see(StepRecord(1.5, 0.1, {}, between=True))
    assert not selector.see(StepRecord(1.75, 0.1, {}, between=True))
    assert selector.best is not None
    assert selector.best.step == 1.5
    selector.see(StepRecord(3, 0.9, {}))
    assert not selector.should_stop
    selector.see(StepRecord(4, 0.9, {}))
    assert selector.should_stop
    again = StepSelector(patience=2)
    for record in selector.records:
        again.see(record)
    assert again == selector


# --------------------------------------------------------------- starting over


def follow(
    rates: list[tuple[float, float]], attempts: int = 1, patience: int = 2, long: int = 4
) -> tuple[StepSelector, list[str]]:
    """Feed (attack, over-refusal) pairs as the module does; returns what it is told each time."""
    selector = StepSelector(patience=patience, margin=0, attempts=attempts, attempt_steps=long)
    attempt, told = 1, []
    for step, (attack, refused) in enumerate(rates):
        scores = {"h/asr_keyword": attack, "b/over_refusal": refused}
        selector.see(StepRecord(step, attack + refused, scores, None, attempt))
        told.append("stop" if selector.should_stop else "")
        if selector.should_start_over:
            told[-1] = "over"
            attempt += 1
    return selector, told


def test_a_slow_attempt_starts_over() -> None:
    # Falling all the time, but not in time.
    rates = [(1.0, 0.0), (0.9, 0.0), (0.8, 0.0), (0.7, 0.0), (0.6, 0.0)]
    assert follow(rates, attempts=2)[1] == ["", "", "", "", "over"]
    assert follow(rates, attempts=1)[1] == [""] * 5


def test_a_plateau_starts_over_before_its_time() -> None:
    rates = [(1.0, 0.0), (0.4, 0.0), (0.4, 0.0), (0.4, 0.0)]
    assert follow(rates, attempts=2, long=10)[1] == ["", "", "", "over"]
    assert follow(rates, attempts=1, long=10)[1] == ["", "", "", "stop"]


@pytest.mark.parametrize(
    ("last", "told"),
    [((0.4, 0.0), "over"), ((0.0, 0.0), "stop"), ((0.4, 0.1), "stop"), ((0.0, 0.4), "stop")],
)
def test_only_too_low_a_rate_starts_over(last: tuple[float, float], told: str) -> None:
    """Neither a repaired model nor one that already refuses the harmless wants a higher rate."""
    rates = [(1.0, 0.0), (0.3, 0.0), last, last, last]
    assert next(filter(None, follow(rates, attempts=2, long=10)[1])) == told


def test_later_attempts_are_judged_by_themselves_and_the_best_of_all_is_kept() -> None:
    first = [(1.0, 0.0), (0.5, 0.0), (0.2, 0.0), (0.2, 0.0), (0.2, 0.0)]
    # Worse than the first attempt's best for longer than the patience, yet still on its way.
    second = [(0.9, 0.0), (0.7, 0.0), (0.6, 0.0), (0.1, 0.0)]
    selector, told = follow(first + second, attempts=3)
    assert told == ["", "", "", "", "over", "", "", "", "over"]
    assert (selector.best.step, selector.best.attempt) == (8, 2)
    # A second attempt that overshoots leaves the first one's step in place.
    selector, told = follow([*first, (0.0, 0.6), (0.0, 0.9), (0.0, 1.0)], attempts=3)
    assert told[-1] == "stop"
    assert (selector.best.step, selector.best.attempt) == (2, 1)


def test_hopeless_attempts_end() -> None:
    told = follow([(1.0, 0.0)] * 9, attempts=2)[1]
    assert told == ["", "", "", "", "over", "", "", "", "stop"]


def test_the_margin_does_not_reach_into_another_attempt() -> None:
    selector = StepSelector(margin=2, attempts=2)
    for step, (score, attempt) in enumerate([(1.0, 1), (0.5, 1), (0.5, 2)]):
        selector.see(StepRecord(step, score, {}, None, attempt))
    assert selector.best.step == 1
