"""Fault 15: what validations choose is never chosen without them, or by some of the prompts."""

from __future__ import annotations

from pathlib import Path

import pytest

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
    "one batch of two": ["--trainer.limit_val_batches", "1"],
    "a share": ["--trainer.limit_val_batches", "0.5"],
    "overfitting": ["--trainer.overfit_batches", "1"],
    "a rare epoch": ["--trainer.check_val_every_n_epoch", "4"],
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
