"""Fault 18: longer runs, steps counted as steps, marks that begin with a space."""

from __future__ import annotations

import csv
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oneshot_lit.evaluation.judges.classifier import disarm
from oneshot_lit.evaluation.judges.published import HarmBenchJudge
from oneshot_lit.methods.posttuning.step_selection import StepRecord, StepSelector

# ------------------------------------------------------------------ (d) disarming


@pytest.mark.parametrize(
    ("text", "marks", "expected"),
    [
        ("go <x> on", [" <x>"], "go < x> on"),
        ("go  <x> on", [" <x>", "<x>"], "go  < x> on"),
        ("a\n<end>b", ["\n<end>"], "a\n< end>b"),
        ("a <x> <x>b", [" <x> "], "a < x> <x>b"),
        # Parting one mark makes another, which is parted in its turn.
        ("<x> < x>", ["<x>", "< x>", "<  x>"], "<   x> <   x>"),
        ("<<s>s>", ["<s>"], "<< s>s>"),
        ("< <s> s>", [" <s> ", "< < s>"], "<  < s> s>"),
        # Nothing to part: blanks, and a single letter among blanks.
        ("a   b x c", ["   ", " x ", "x", ""], "a   b x c"),
    ],
)
def test_disarming_ends_and_leaves_no_mark(text: str, marks: list[str], expected: str) -> None:
    start = time.monotonic()
    found = disarm(text, marks)
    assert time.monotonic() - start < 1
    assert found == expected
    assert "".join(found.split()) == "".join(text.split())


def test_added_tokens_that_begin_with_a_space_are_disarmed(tiny_folder: Any) -> None:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    tokenizer.add_tokens([AddedToken(" <verdict>"), AddedToken("\n\n"), AddedToken(" y")])
    clean = HarmBenchJudge("unused").disarmed("fine . <verdict> no y\n\n", tokenizer)
    assert " <verdict>" not in tokenizer.tokenize(clean)
    assert " <verdict>" not in clean


# ----------------------------------------- (b) steps, however many between validations


def rates(step: float, attack: float, refused: float, attempt: int = 1) -> StepRecord:
    scores = {"h/asr_keyword": attack, "b/over_refusal": refused}
    return StepRecord(step, attack + refused, scores, None, attempt)


@pytest.mark.parametrize("between", [1, 3, 10])
def test_an_attempt_is_as_long_as_its_steps(between: int) -> None:
    selector = StepSelector(patience=99, attempts=3, attempt_steps=20)
    attempt, starts = 1, []
    for step in range(0, 90, between):
        selector.see(rates(step, 1.0, 0.0, attempt if step else 1))
        if selector.attempt == attempt and selector.should_start_over:
            starts.append(step)
            attempt += 1
        if selector.should_stop:
            starts.append(step)
            break
    # Validations come every so many steps: the first behind the twentieth of each attempt.
    whole = -(-20 // between) * between
    assert starts == [whole, 2 * whole, 3 * whole]


def test_points_between_validations_count_and_replay() -> None:
    selector = StepSelector(patience=2, attempts=1)
    for step, attack in ((0, 1.0), (10, 0.9), (20, 0.8)):
        selector.see(rates(step, attack, 0.0))
    assert selector.see(replace(rates(12.5, 0.1, 0.0), between=True))
    selector.see(rates(30, 0.7, 0.0))
    assert not selector.should_stop
    selector.see(rates(40, 0.7, 0.0))
    assert selector.should_stop
    again = StepSelector(patience=2, attempts=1)
    for record in selector.records:
        again.see(record)
    assert again == selector


QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def realign(command: Any, model: Path, root: Path, *words: str) -> list[dict[str, str]]:
    source = "class_path: oneshot_lit.data.Microworld"
    sets = [
        f"{name}: {{kind: {name}, source: {{{source}, init_args: {{split: {name}_dev, size: 8}}}}}}"
        for name in ("harmful", "benign")
    ]
    done = command(
        *["fit", "--config", "configs/realign/one_shot.yaml", *QUIET],
        *["--model.model_name_or_path", model, "--trainer.default_root_dir", root],
        *["--trainer.callbacks", "null", "--data.val_sets", f"{{{', '.join(sets)}}}", *words],
    )
    assert done.code == 0, done.err
    with (root / "realignment.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("repeats", "words"),
    [
        (10, ["--data.instance_repeats", "10"]),
        (6, ["--trainer.check_val_every_n_epoch", "6"]),
    ],
)
@pytest.mark.slow
def test_the_refinement_bisects_between_two_validations(
    command: Any, broken: Path, tmp_path: Path, repeats: int, words: list[str]
) -> None:
    # A rate at which so many steps refuse everything.
    words = [*words, "--model.optimizer.lr", "2e-3", "--model.attempts", "1"]
    words += ["--trainer.max_steps", str(repeats)]
    rows = realign(command, broken, tmp_path / "run", *words)
    steps = [float(row["step"]) for row in rows]
    assert steps[0] == 0
    assert steps[-1] == repeats
    parts = [row for row in rows if float(row["step"]) not in (0, repeats)]
    # By bisection, the first halfway.
    assert repeats / 2 in [float(row["step"]) for row in parts]
    last = rows[-1]
    assert float(last["benign/over_refusal"]) > 0
    kept = next(row for row in rows if row["kept"] == "1")
    assert float(kept["score"]) == min(float(row["score"]) for row in rows)
    if kept in parts:
        # The product lies on the way from the broken model to the last step.
        share = float(kept["step"]) / repeats
        plain = [*words, "--model.select_best", "false"]
        realign(command, broken, tmp_path / "last", *plain)
        start, end, found = (
            load_file(place / "model.safetensors")
            for place in (broken, tmp_path / "last" / "model", tmp_path / "run" / "model")
        )
        for name, weight in found.items():
            torch.testing.assert_close(weight, start[name].lerp(end[name], share))


@pytest.mark.slow
def test_a_slow_attempt_ends_with_its_steps(command: Any, broken: Path, tmp_path: Path) -> None:
    words = ["--model.optimizer.lr", "1e-7", "--data.instance_repeats", "5"]
    words += ["--model.attempt_steps", "10", "--model.attempts", "2", "--trainer.max_epochs", "4"]
    rows = realign(command, broken, tmp_path / "run", *words)
    assert [(row["step"], row["attempt"]) for row in rows] == [
        ("0", "1"),
        ("5", "1"),
        ("10", "1"),
        ("15", "2"),
        ("20", "2"),
    ]


# --------------------------------------------------- (a) a finished run goes on

SAVED = ["--checkpoint.max_share", "1"]
LR = ["--model.lr_scheduler.step_size", "2", "--model.lr_scheduler.gamma", "0.5"]


def weights(root: Path) -> dict[str, torch.Tensor]:
    (file,) = (root / "model").glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(
    ("short", "long"),
    [
        (["--trainer.max_epochs", "2"], ["--trainer.max_epochs", "4"]),
        (["--trainer.max_steps", "3"], ["--trainer.max_steps", "9", "--trainer.max_epochs", "9"]),
        # In mid-epoch, under a schedule, with an adapter.
        (
            ["--trainer.max_steps", "4", "--model.lr_scheduler", "StepLR", *LR],
            ["--trainer.max_steps", "7", "--model.lr_scheduler", "StepLR", *LR],
        ),
    ],
)
@pytest.mark.slow
def test_a_finished_run_goes_on_as_the_longer_one(
    command: Any, fit_words: list[str], tmp_path: Path, short: list[str], long: list[str]
) -> None:
    words = [*fit_words, *SAVED, "--checkpoint.every_n_train_steps", "1"]
    whole = [*words, *long, "--trainer.default_root_dir", str(tmp_path / "whole")]
    done = command(*whole)
    assert done.code == 0, done.err
    assert command(*words, *short).code == 0
    before = weights(tmp_path / "run")
    done = command(*words, *long, "--ckpt_path", "last")
    assert done.code == 0, done.err
    found, wanted = weights(tmp_path / "run"), weights(tmp_path / "whole")
    assert any(not torch.equal(before[name], wanted[name]) for name in wanted)
    for name, weight in wanted.items():
        assert torch.equal(found[name], weight), name
    # Now it is the longer run's folder.
    assert command(*words, *long).code == 0


@pytest.mark.slow
def test_scores_of_the_shorter_run_are_not_the_longer_ones(
    command: Any, fit_words: list[str], test_words: list[str], tmp_path: Path
) -> None:
    assert command(*fit_words, *SAVED).code == 0
    assert command(*test_words).code == 0
    more = ["--trainer.max_epochs", "3", "--ckpt_path", "last"]
    assert command(*fit_words, *SAVED, *more).code == 0
    assert not (tmp_path / "run" / "metrics.json").exists()


@pytest.mark.slow
def test_another_run_is_still_kept_out(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    assert command(*fit_words, *SAVED).code == 0
    before = weights(tmp_path / "run")
    other = ["--model.optimizer.lr", "0.5", "--trainer.max_epochs", "3"]
    done = command(*fit_words, *SAVED, *other, "--ckpt_path", "last")
    assert done.code == 2
    assert "holds the output of another run (model.optimizer.lr was 5e-05 and is" in done.error
    # Without a checkpoint to go on from, a longer run is another one.
    done = command(*fit_words, *SAVED, "--trainer.max_epochs", "3")
    assert done.code == 2
    assert "--ckpt_path last" in done.error
    for name, weight in weights(tmp_path / "run").items():
        assert torch.equal(weight, before[name])


@pytest.mark.slow
def test_a_finished_realignment_goes_on(command: Any, broken: Path, tmp_path: Path) -> None:
    words = [*SAVED, "--model.optimizer.lr", "1e-4", "--model.attempt_steps", "3"]
    long = [*words, "--trainer.max_epochs", "8"]
    whole = realign(command, broken, tmp_path / "whole", *long)
    realign(command, broken, tmp_path / "cut", *words, "--trainer.max_epochs", "2")
    cut = realign(command, broken, tmp_path / "cut", *long, "--ckpt_path", "last")
    assert cut == whole
    assert max(int(row["attempt"]) for row in whole) > 1
    for name, weight in weights(tmp_path / "cut").items():
        assert torch.equal(weight, weights(tmp_path / "whole")[name])
