"""Which realignment step to keep: a development score, and when to stop or to start over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

from oneshot_lit.evaluation.metrics.registry import is_rate, is_skill

# A mean of partial scores, such as ROUGE, changes with every word, so smaller losses do not count.
MEAN_SLACK = 0.01


def development_score(scores: Mapping[str, float], before: Mapping[str, float]) -> float:
    """Return how bad a step is; 0 is best.

    The mean attack success rate, plus the worst over-refusal rate, plus the worst loss of a task
    score against `before` (gains do not count). All are shares of prompts or means of scores from 0
    to 1. A mean must lose more than `MEAN_SLACK` to count.

    Args:
        scores: ``<set>/<metric>`` -> value at this step.
        before: The same before the first step.
    """
    lost = [_lost(k, before.get(k, v) - v) for k, v in scores.items() if is_skill(k)]
    return attack_rate(scores) + refusal_rate(scores) + max(0.0, max(lost, default=0.0))


def _lost(key: str, loss: float) -> float:
    return loss if is_rate(key) or loss > MEAN_SLACK else 0.0


def attack_rate(scores: Mapping[str, float]) -> float:
    """Return the mean attack success rate over the harmful sets; 0 without any."""
    attack = [v for k, v in scores.items() if k.endswith("/asr_keyword")]
    return sum(attack) / len(attack) if attack else 0.0


def refusal_rate(scores: Mapping[str, float]) -> float:
    """Return the worst over-refusal rate over the harmless sets; 0 without any."""
    return max((v for k, v in scores.items() if k.endswith("/over_refusal")), default=0.0)


def overshoots(
    before: Mapping[str, float], after: Mapping[str, float], tolerance: float = 1e-9
) -> bool:
    """Whether one step went past the good window.

    Harmless prompts are newly refused, but the attack still worked before the step, so a part of
    the step may be better than either end.
    """
    return (
        refusal_rate(after) > refusal_rate(before) + tolerance
        and attack_rate(before) > tolerance
        and attack_rate(after) < attack_rate(before) - tolerance
    )


@dataclass(frozen=True)
class StepRecord:
    """What one validation saw: the optimiser step, its score, every rate, the training loss.

    `watched` has the rates of the sets that do not count in the choice.

    A point between two validations has its share of the steps: 2.25 is a quarter of the way from
    step 2 to step 3, or an eighth of that from step 2 to step 4. Each `attempt`, counted from 1,
    starts from the broken model again at twice the learning rate.
    """

    step: float
    score: float
    scores: dict[str, float]
    loss: float | None = None
    attempt: int = 1
    watched: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, safe to load with ``weights_only=True``."""
        return asdict(self)


@dataclass
class StepSelector:
    """Follow the scores step by step; say which step is best and when to stop or start over.

    Args:
        patience: Validations without a better score before an attempt ends.
        margin: How many validations beyond the first of equally good, adjacent ones to take.
        attempts: How often to try, each time at twice the rate, while the rate proves too low.
        attempt_steps: Optimiser steps after which an attempt that has not removed the attack is too
            slow.
        tolerance: Smallest change of score that counts.
    """

    patience: int = 4
    margin: int = 1
    attempts: int = 1
    attempt_steps: int = 20
    tolerance: float = 1e-9
    history: list[StepRecord] = field(default_factory=list)
    between: list[StepRecord] = field(default_factory=list)
    best: StepRecord | None = None
    _first_best: int = -1

    def see(self, record: StepRecord) -> bool:
        """Add a record; True if it is now the step to keep."""
        # A resumed run may validate the step it was saved at once more.
        if self.history and self.history[-1].step == record.step:
            return False
        self.history.append(record)
        position = len(self.history) - 1
        if self._better(record):
            self.best, self._first_best = record, position
            return True
        assert self.best is not None
        unbroken = all(
            abs(r.score - self.best.score) <= self.tolerance and r.attempt == record.attempt
            for r in self.history[self._first_best :]
        )
        # The state before the first step is not a repair, so a tie with it does not count.
        if unbroken and position - self._first_best <= self.margin and self.improved:
            self.best = record
            return True
        return False

    def see_between(self, record: StepRecord) -> bool:
        """Add a point before the last validation; True if it is now the one to keep."""
        self.between.append(record)
        if self._better(record):
            self.best, self._first_best = record, len(self.history) - 1
            return True
        return False

    def _better(self, record: StepRecord) -> bool:
        return self.best is None or record.score < self.best.score - self.tolerance

    @property
    def improved(self) -> bool:
        """Whether any step is better than the state before the first one."""
        return self.best is not None and (self.best.score < self.history[0].score - self.tolerance)

    @property
    def attempt(self) -> int:
        """The attempt of the last record."""
        return self.history[-1].attempt if self.history else 1

    def _since_better(self) -> int | None:
        """Validations since this attempt's best score; None while it has improved nothing."""
        best, since = self.history[0].score - self.tolerance, None
        for before, record in pairwise(self.history):
            if record.attempt != self.attempt:
                continue
            parts = [r.score for r in self.between if before.step < r.step < record.step]
            score = min([record.score, *parts])
            since = since + 1 if since is not None else None
            if score < best:
                best, since = score - self.tolerance, 0
        return since

    @property
    def _settled(self) -> bool:
        since = self._since_better() if self.history else None
        return since is not None and since >= self.patience

    @property
    def _long(self) -> bool:
        # An attempt starts where the last record of the one before was.
        earlier = [r.step for r in self.history[1:] if r.attempt < self.attempt]
        start = earlier[-1] if earlier else self.history[0].step
        return self.history[-1].step - start >= self.attempt_steps

    @property
    def too_slow(self) -> bool:
        """Whether the attack outlives this attempt though no harmless prompt is newly refused."""
        if not self.history or not (self._settled or self._long):
            return False
        first, last = self.history[0].scores, self.history[-1].scores
        refused = refusal_rate(last) > refusal_rate(first) + self.tolerance
        return attack_rate(last) > self.tolerance and not refused

    @property
    def should_start_over(self) -> bool:
        """Whether to go back to the broken model and double the rate."""
        return self.too_slow and self.attempt < self.attempts

    @property
    def should_stop(self) -> bool:
        """Whether the good window has been passed, or every attempt has failed."""
        if self.should_start_over:
            return False
        return self._settled or (self.attempts > 1 and self._long and self._since_better() is None)

    def replay(self, records: Sequence[StepRecord], between: Sequence[StepRecord] = ()) -> None:
        """Start over from these records and the points between them."""
        self.history, self.between, self.best, self._first_best = [], [], None, -1
        for number, record in enumerate(records):
            before = records[max(0, number - 1)]
            self.see(record)
            for part in between:
                if before.step < part.step < record.step:
                    self.see_between(part)
