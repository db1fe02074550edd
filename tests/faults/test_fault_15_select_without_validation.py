"""Fault 15: what validations choose is never chosen without them, or by some of the prompts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.validations import (
    batches_of_run,
    batches_until_validation,
    require_validation,
)

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def realign_words(model: Path, root: Path, *words: str) -> list[str]:
    source = "class_path: oneshot_lit.data.Microworld"
    sets = [
        f"{name}: {{kind: {name}, source: {{{source}, init_args: {{split: {name}_dev, size: 6}}}}}}"
        for name in ("harmful", "benign")
    ]
    return [
        *["fit", "--config", "configs/realign/one_shot.yaml", *QUIET],
        *["--model.model_name_or_path", str(model), "--model.optimizer.lr", "5e-4"],
        *["--trainer.callbacks", "null", "--data.val_sets", f"{{{', '.join(sets)}}}"],
        *["--data.eval_batch_size", "4", "--trainer.default_root_dir", str(root)],
        *["--trainer.max_epochs", "3", *words],
    ]


TOO_FEW = {
    "none": ["--trainer.limit_val_batches", "0"],
    "none of all": ["--trainer.limit_val_batches", "0.0"],
    "one batch of two": ["--trainer.limit_val_batches", "1"],
    "a share": ["--trainer.limit_val_batches", "0.5"],
    "overfitting": ["--trainer.overfit_batches", "1"],
    "a rare epoch": ["--trainer.check_val_every_n_epoch", "4"],
    "a rare batch": [
        *["--trainer.check_val_every_n_epoch", "null", "--trainer.val_check_interval", "4"],
    ],
    "few steps": ["--data.instance_repeats", "5", "--trainer.max_steps", "4"],
    "few accumulated steps": [
        *["--data.instance_repeats", "5", "--trainer.accumulate_grad_batches", "2"],
        *["--trainer.max_steps", "2"],
    ],
    "no epoch": ["--trainer.max_epochs", "0"],
}


@pytest.mark.parametrize("name", TOO_FEW)
def test_a_step_is_not_chosen_without_validations(
    command, broken: Path, tmp_path: Path, name: str
) -> None:
    done = command(*realign_words(broken, tmp_path, *TOO_FEW[name]))
    assert done.code == 2
    assert "model.select_best" in done.error
    assert not (tmp_path / "model").exists()


@pytest.mark.slow
def test_the_last_step_is_free_to_do_without(command, broken: Path, tmp_path: Path) -> None:
    words = ["--trainer.limit_val_batches", "0", "--model.select_best", "false"]
    done = command(*realign_words(broken, tmp_path / "last", *words))
    assert done.code == 0, done.err
    assert (tmp_path / "last" / "model").exists()
    done = command(*realign_words(broken, tmp_path / "trial", "--trainer.fast_dev_run", "true"))
    assert done.code == 0, done.err
    assert not (tmp_path / "trial" / "model").exists()


def test_a_limit_that_lets_all_through_is_none(command, broken: Path, tmp_path: Path) -> None:
    words = ["--trainer.limit_val_batches", "2", "--trainer.check_val_every_n_epoch", "3"]
    done = command(*realign_words(broken, tmp_path, *words))
    assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("options", "first", "last"),
    [
        ({}, 5, 15),
        ({"val_check_batch": 2}, 2, 15),
        ({"check_val_every_n_epoch": 3}, 15, 15),
        ({"check_val_every_n_epoch": 3, "val_check_batch": 2}, 12, 15),
        ({"check_val_every_n_epoch": None, "val_check_batch": 7}, 7, 15),
        ({"val_check_batch": float("inf")}, 5, 15),
        ({"max_steps": 4}, 5, 4),
        # Three windows an epoch of five batches, the last of one batch.
        ({"max_steps": 4, "accumulate_grad_batches": 2}, 5, 7),
        ({"max_steps": 3, "accumulate_grad_batches": 2}, 5, 5),
        ({"max_epochs": -1}, 5, float("inf")),
        ({"max_epochs": -1, "max_steps": 11}, 5, 11),
        ({"_val_check_time_interval": 60.0}, None, 15),
    ],
)
def test_batches_are_counted_as_lightning_does(
    options: dict[str, Any], first: float | None, last: float
) -> None:
    usual = {
        "num_training_batches": 5,
        "val_check_batch": 5,
        "check_val_every_n_epoch": 1,
        "val_check_interval": 1.0,
        "max_epochs": 3,
        "max_steps": -1,
        "accumulate_grad_batches": 1,
        "fast_dev_run": False,
    }
    trainer: Any = SimpleNamespace(**{**usual, **options})
    assert batches_until_validation(trainer) == first
    assert batches_of_run(trainer) == last
    if first is not None and first > last:
        with pytest.raises(OneShotError, match="none comes before the run ends"):
            require_validation(trainer, "it")
    else:
        require_validation(trainer, "it")
