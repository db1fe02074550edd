"""Whose checkpoint it is: resuming, testing and saving never take one run for another."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from oneshot_lit.callbacks import RunCheckpoint
from oneshot_lit.io.runs import resume_conflict

SAVED = ["--checkpoint.max_share", "1"]


@pytest.mark.slow
def test_another_configuration_is_not_resumed(command, fit_words: list[str]) -> None:
    assert command(*fit_words, *SAVED).code == 0
    done = command(
        *fit_words, *SAVED, "--model.optimizer.lr", "0.5", "--ckpt_path", "last", "--overwrite=true"
    )
    assert done.code == 2
    assert "model.optimizer.lr was 5e-05 and is now 0.5" in done.error
    # More epochs, other batches of evaluation and no progress bar make no other run.
    more = ["--trainer.max_epochs", "4", "--data.eval_batch_size", "3", "--overwrite=true"]
    assert command(*fit_words, *SAVED, *more, "--ckpt_path", "last").code == 0


def test_resume_conflict_names_the_first_difference() -> None:
    old = {
        "model": {"class_path": "A", "init_args": {"lr": 1, "gone": 2}},
        "trainer": {"devices": 1},
    }
    new = {
        "model": {"class_path": "A", "init_args": {"lr": 1, "new": 3}},
        "trainer": {"devices": 2},
    }
    assert resume_conflict(old, old) is None
    assert resume_conflict(old, new) == "model.gone was 2 and is now None"
    other = {**old, "trainer": {"devices": 2, "max_epochs": 9}, "overwrite": True}
    assert resume_conflict(old, other) is None


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
@pytest.mark.slow
def test_a_broken_checkpoint(command, fit_words: list[str], tmp_path: Path, content) -> None:
    assert command(*fit_words, *SAVED).code == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:5000] if content is None else content)
    done = command(*fit_words, *SAVED, "--ckpt_path", "last")
    assert done.code == 2
    assert f"{last}: not a whole checkpoint" in done.error


def test_a_checkpoint_of_another_model(command, fit_words: list[str], tmp_path: Path) -> None:
    assert command(*fit_words, *SAVED).code == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    name = "model.model.norm.weight"
    content["state_dict"][name] = content["state_dict"][name][:3]
    torch.save(content, last)
    done = command(*fit_words, *SAVED, "--ckpt_path", "last")
    assert done.code == 2
    assert "does not fit this model" in done.error
    assert name in done.error


def test_scores_of_a_checkpoint_are_not_those_of_its_base(
    command, fit_words: list[str], test_words: list[str], tmp_path: Path
) -> None:
    assert command(*fit_words, *SAVED).code == 0
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    assert command(*test_words).code == 0
    scores = tmp_path / "run" / "metrics.json"
    assert json.loads(scores.read_text())["ckpt_path"] is None
    before = scores.read_bytes()
    assert command(*test_words, "--ckpt_path", last).code == 2
    assert scores.read_bytes() == before
    assert command(*test_words, "--ckpt_path", last, "--overwrite", "true").code == 0
    assert json.loads(scores.read_text())["ckpt_path"] == str(last)


def test_a_save_put_off_never_falls_between_accumulated_batches(tmp_path: Path) -> None:
    saved = []
    trainer = SimpleNamespace(
        global_step=0,
        fast_dev_run=False,
        default_root_dir=str(tmp_path),
        strategy=SimpleNamespace(broadcast=lambda value: value),
        save_checkpoint=lambda path, weights_only: saved.append((trainer.global_step, batch)),
        # Neither an epoch's end nor a validation follows, which a save would wait for.
        is_last_batch=False,
        fit_loop=SimpleNamespace(
            _data_fetcher=None,
            epoch_loop=SimpleNamespace(_should_check_val_fx=lambda fetcher: False),
        ),
    )
    checkpoint = RunCheckpoint(every_n_train_steps=1, max_share=0.5)
    batch = 0
    for batch in range(1, 17):
        # Four batches a step; saving is worth it from the seventh batch on.
        trainer.global_step = batch // 4
        checkpoint._cost = 1e9 if batch < 7 else 0.0
        checkpoint.on_train_batch_end(trainer, None, None, None, batch)
    assert saved
    assert all(batch % 4 == 0 for _, batch in saved)
