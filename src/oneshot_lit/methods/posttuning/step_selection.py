"""Which realignment step to keep: a development score, and when to stop or to start over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from oneshot_lit.errors import OneShotError
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


def require_rates(prompt_sets: Iterable[Any], chooser: str) -> None:
    """Refuse to choose by rates that are not measured; a missing one would count as 0.

    Args:
        prompt_sets: The development prompts, as `SafetyDataModule.prompt_sets` returns them.
        chooser: What chooses by them, for the error.

    Raises:
        OneShotError: without harmful prompts, or without harmless ones.
    """
    measured = {metric for each in prompt_sets if not each.watch for metric in each.metrics}
    for metric, kind in (("asr_keyword", "harmful"), ("over_refusal", "harmless")):
        if metric not in measured:
            raise OneShotError(
                f"{chooser} needs a {kind} prompt set with the metric {metric} in data.val_sets; "
                "give one, or do without."
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
    between: bool = False


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
    records: list[StepRecord] = field(default_factory=list)
    best: StepRecord | None = None
    _first_best: int = -1

    @property
    def history(self) -> list[StepRecord]:
        """The validations, without the points between them."""
        return [record for record in self.records if not record.between]

    def see(self, record: StepRecord) -> bool:
        """Add a record; True if it is now the one to keep.

        A point between two validations comes after the second of them.
        """
        history = self.history
        if not record.between:
            # A resumed run may validate the step it was saved at once more.
            if history and history[-1].step == record.step:
                return False
            history.append(record)
        self.records.append(record)
        position = len(history) - 1
        if self.best is None or record.score < self.best.score - self.tolerance:
            self.best, self._first_best = record, position
            return True
        unbroken = all(
            abs(r.score - self.best.score) <= self.tolerance and r.attempt == record.attempt
            for r in history[self._first_best :]
        )
        # The state before the first step is not a repair, so a tie with it does not count.
        improved = self.improved and not record.between
        if improved and unbroken and position - self._first_best <= self.margin:
            self.best = record
            return True
        return False

    @property
    def improved(self) -> bool:
        """Whether any step is better than the state before the first one."""
        return self.best is not None and self.best.score < self.records[0].score - self.tolerance

    @property
    def attempt(self) -> int:
        """The attempt of the last record."""
        return self.records[-1].attempt if self.records else 1

    def _since_better(self) -> int | None:
        """Validations since this attempt's best score; None while it has improved nothing."""
        if not self.records:
            return None
        best, since = self.records[0].score - self.tolerance, None
        for record in self.records[1:]:
            if record.attempt != self.attempt:
                continue
            if since is not None and not record.between:
                since += 1
            if record.score < best:
                best, since = record.score - self.tolerance, 0
        return since

    @property
    def _settled(self) -> bool:
        since = self._since_better()
        return since is not None and since >= self.patience

    @property
    def _long(self) -> bool:
        # An attempt starts where the last record of the one before was.
        history = self.history
        earlier = [r.step for r in history[1:] if r.attempt < self.attempt]
        start = earlier[-1] if earlier else history[0].step
        return history[-1].step - start >= self.attempt_steps

    @property
    def should_start_over(self) -> bool:
        """Whether to go back to the broken model and double the rate.

        That is when the attack outlives the attempt though no harmless prompt is newly refused.
        """
        if not self.records or self.attempt >= self.attempts:
            return False
        first, last = self.history[0].scores, self.history[-1].scores
        refused = refusal_rate(last) > refusal_rate(first) + self.tolerance
        slow = attack_rate(last) > self.tolerance and not refused
        return slow and (self._settled or self._long)

    @property
    def should_stop(self) -> bool:
        """Whether the good window has been passed, or every attempt has failed."""
        if self.should_start_over:
            return False
        return self._settled or (self.attempts > 1 and self._long and self._since_better() is None)
