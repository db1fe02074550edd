"""Selections that are killed and run again end as those that never were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from selecting import (
    bilevel_words,
    brute_words,
    enumeration_words,
    kill_after_rows,
    product,
    read_rows,
    rule_words,
)

from experiments.selection.by_rule import RuleSelectionModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import (
    BruteForceModule,
    EnumerationModule,
    InstanceSelectionModule,
)

WHOLE = ("--model.peft", "null", "--model.optimizer.lr", "2e-4")
DROPOUT = ("--model.peft", "{r: 4, lora_dropout: 0.3, target_modules: all-linear}")
# What differs between any two runs.
TIMES = ("seconds",)


def run(command, words: list[str]) -> None:
    done = command(*words)
    assert done.code == 0, done.err


def without_times(found: dict[str, Any]) -> dict[str, Any]:
    facts = {k: v for k, v in found["provenance"].items() if k not in TIMES}
    return {**found, "provenance": facts}


def stop_before(monkeypatch: pytest.MonkeyPatch, kind: type, step: int) -> None:
    """Let `step` fail once so many steps are taken."""
    take, taken = kind.step, []

    def failing(self: Any) -> bool:
        if len(taken) == step:
            raise OneShotError("stopped here")
        taken.append(1)
        return take(self)

    monkeypatch.setattr(kind, "step", failing)


@pytest.mark.slow
def test_a_killed_bilevel_selection_ends_the_same(command, broken: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = bilevel_words(broken, killed)
    kill_after_rows(words, killed / "selection.csv", 3, tmp_path / "log")
    assert 3 <= len(read_rows(killed / "selection.csv")) < 8
    assert not (killed / "selection.json").exists()
    run(command, words)
    run(command, bilevel_words(broken, whole))
    # Bit for bit: scores, what the last step saw, and the rows that it cost.
    assert without_times(product(killed)) == without_times(product(whole))
    assert (killed / "selection.csv").read_text() == (whole / "selection.csv").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "step"), [(WHOLE, 1), (DROPOUT, 3)], ids=["whole models", "dropout"]
)
def test_a_stopped_bilevel_selection_ends_the_same(
    command, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options, step: int
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = (*options, "--model.penalty.steps", "4")
    run(command, bilevel_words(broken, whole, *options))
    with monkeypatch.context() as patched:
        stop_before(patched, InstanceSelectionModule, step)
        assert command(*bilevel_words(broken, stopped, *options)).code == 2
    assert len(read_rows(stopped / "selection.csv")) == step
    run(command, bilevel_words(broken, stopped, *options))
    assert without_times(product(stopped)) == without_times(product(whole))
    assert (stopped / "selection.csv").read_text() == (whole / "selection.csv").read_text()


ENDED: dict[str, Any] = {
    "bilevel": lambda *words: bilevel_words(*words, "--model.penalty.steps", "3"),
    "brute force": lambda *words: brute_words(*words, limit=3),
    "enumeration": enumeration_words,
    "rule": rule_words,
}


@pytest.mark.parametrize("kind", list(ENDED))
@pytest.mark.slow
def test_a_run_killed_behind_its_last_step_takes_no_further_one(
    command, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    words = ENDED[kind](broken, tmp_path)
    kinds = {
        "bilevel": InstanceSelectionModule,
        "brute force": BruteForceModule,
        "enumeration": EnumerationModule,
        "rule": RuleSelectionModule,
    }
    run(command, ENDED[kind](broken, tmp_path / "whole"))
    with monkeypatch.context() as patched:
        # What writes the ranking fails; the state of the last step is saved.
        patched.setattr(kinds[kind], "finish", stopped)
        assert command(*words).code == 2
    assert not (tmp_path / "selection.json").exists()
    with monkeypatch.context() as patched:
        patched.setattr(kinds[kind], "step", stopped)
        run(command, words)
    assert without_times(product(tmp_path)) == without_times(product(tmp_path / "whole"))
    # What the steps took is not forgotten.
    assert product(tmp_path)["provenance"]["seconds"] > 0
    assert not (tmp_path / "checkpoints" / "job.ckpt").exists()


def stopped(*_: Any) -> bool:
    raise OneShotError("stopped here")


def test_a_state_of_another_run_is_left_aside(
    command, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(EnumerationModule, "finish", stopped)
        assert command(*enumeration_words(broken, tmp_path)).code == 2
    words = enumeration_words(broken, tmp_path, "--model.task_weight", "3")
    done = command(*words)
    assert done.code == 0, done.err
    assert "model.task_weight was 10.0 and is now 3.0; starting anew" in done.err + done.out
    assert product(tmp_path)["provenance"]["task_weight"] == 3


@pytest.mark.slow
def test_a_killed_brute_force_ends_the_same(command, broken: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_after_rows(brute_words(broken, killed), killed / "candidates.csv", 2, tmp_path / "log")
    assert not (killed / "selection.json").exists()
    run(command, brute_words(broken, killed))
    run(command, brute_words(broken, whole))
    assert without_times(product(killed)) == without_times(product(whole))
    assert (killed / "candidates.csv").read_text() == (whole / "candidates.csv").read_text()


@pytest.mark.slow
def test_a_stopped_brute_force_measures_each_once(
    command, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Saved after every step, whatever that costs.
    monkeypatch.setattr("oneshot_lit.methods.job._MOST", float("inf"))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run(command, brute_words(broken, whole))
    for steps in (3, 2):
        with monkeypatch.context() as patched:
            stop_before(patched, BruteForceModule, steps)
            done = command(*brute_words(broken, stopped))
        # Two of five are left for the second run.
        assert done.code == (2 if steps == 3 else 0)
    assert without_times(product(stopped)) == without_times(product(whole))
    assert (stopped / "candidates.csv").read_text() == (whole / "candidates.csv").read_text()
