"""`OneShotRealignmentModule` beyond its selector: starting over at a higher rate."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from oneshot_lit.cli.fit import run_lightning_command

    root = tmp_path_factory.mktemp("attacked")
    words = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
    words += ["--model.model_name_or_path", "checkpoints/small", "--trainer.max_epochs", "3"]
    words += ["--trainer.default_root_dir", str(root), *QUIET]
    assert run_lightning_command(words) == 0
    return root / "model"


QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def realign(command, model: Path, root: Path, *words: str) -> list[dict[str, str]]:
    done = command(
        *["fit", "--config", "configs/realign/one_shot.yaml", *QUIET],
        *["--model.model_name_or_path", model, "--trainer.default_root_dir", root],
        *["--trainer.callbacks", "null", *words],
    )
    assert done.code == 0, done.err
    with (root / "realignment.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(root: Path) -> bytes:
    return (root / "model" / "model.safetensors").read_bytes()


SCHEDULE = ["--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR"]


@pytest.mark.slow
def test_a_second_attempt_is_a_first_one_at_twice_the_rate(
    command, attacked: Path, tmp_path: Path
) -> None:
    """Weights, optimiser state and schedule all start afresh, bit for bit."""
    words = ["--model.optimizer.lr", "4e-6", "--model.attempt_steps", "3", *SCHEDULE]
    rows = realign(
        command,
        attacked,
        tmp_path / "twice",
        *words,
        "--model.attempts",
        "2",
        "--model.refine",
        "0",
    )
    assert [int(row["attempt"]) for row in rows] == [1, 1, 1, 1, 2, 2, 2]
    words = ["--model.optimizer.lr", "8e-6", "--model.attempts", "1", *SCHEDULE]
    plain = realign(command, attacked, tmp_path / "once", *words, "--trainer.max_epochs", "3")
    assert [row["loss"] for row in rows[4:]] == [row["loss"] for row in plain[1:]]
    assert rows[1]["loss"] == plain[1]["loss"]
    assert rows[2]["loss"] != plain[2]["loss"]


@pytest.mark.slow
def test_starting_over_finds_the_window_at_a_hopeless_rate(
    command, attacked: Path, tmp_path: Path
) -> None:
    rows = realign(command, attacked, tmp_path / "run", "--model.optimizer.lr", "1e-4")
    (kept,) = [row for row in rows if row["kept"] == "1"]
    assert int(kept["attempt"]) > 1
    assert float(kept["harmful/asr_keyword"]) + float(kept["benign/over_refusal"]) <= 0.05


def test_attempts_are_validated(command, attacked: Path, tmp_path: Path) -> None:
    done = command(
        *["fit", "--config", "configs/realign/one_shot.yaml", *QUIET],
        *["--model.model_name_or_path", attacked, "--trainer.default_root_dir", tmp_path / "run"],
        *["--model.attempts", "0"],
    )
    assert done.code == 2
    assert "model.attempts must be at least 1, not 0" in done.err


@pytest.mark.parametrize("steps", ["0", "1"])
@pytest.mark.slow
def test_the_broken_model_is_always_scored_whole(
    command, attacked: Path, tmp_path: Path, steps: str
) -> None:
    words = ["--trainer.max_epochs", "2", "--data.eval_batch_size", "40"]
    full = realign(command, attacked, tmp_path / "full", *words)
    part = realign(
        command, attacked, tmp_path / "part", *words, "--trainer.num_sanity_val_steps", steps
    )
    assert [row["step"] for row in part] == ["0", "1", "2"]
    assert part == full


@pytest.mark.parametrize(
    ("kinds", "missing"),
    [({"a": "harmful"}, "over_refusal"), ({"a": "benign", "b": "task"}, "asr_keyword")],
)
def test_rates_that_nobody_measures_choose_nothing(
    command, attacked: Path, tmp_path: Path, kinds: dict[str, str], missing: str
) -> None:
    sets = {
        name: {
            "kind": kind,
            "source": {
                "class_path": "oneshot_lit.data.Microworld",
                "init_args": {"split": "sql_dev" if kind == "task" else f"{kind}_dev", "size": 2},
            },
        }
        for name, kind in kinds.items()
    }
    done = command(
        *["fit", "--config", "configs/realign/one_shot.yaml", *QUIET],
        *["--model.model_name_or_path", attacked, "--trainer.default_root_dir", tmp_path / "run"],
        *["--data.val_sets", json.dumps(sets)],
    )
    assert done.code == 2
    assert missing in done.error
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_parts_of_a_step_are_scored_in_the_precision_of_whole_steps(
    command, attacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from oneshot_lit.methods import OneShotRealignmentModule

    seen = []
    generate = OneShotRealignmentModule.generate

    def watched(self, batch):
        seen.append(torch.is_autocast_enabled("cpu"))
        return generate(self, batch)

    monkeypatch.setattr(OneShotRealignmentModule, "generate", watched)
    words = ["--trainer.max_epochs", "1", "--trainer.precision", "bf16-mixed"]
    realign(command, attacked, tmp_path, *words, "--trainer.num_sanity_val_steps", "0")
    assert seen
    assert all(seen)


@pytest.mark.slow
def test_a_watched_set_is_drawn_and_chooses_nothing(
    command, attacked: Path, tmp_path: Path
) -> None:
    overlay = tmp_path / "watched.yaml"
    # Harmless prompts in the place of harmful ones: they are answered whatever the step.
    overlay.write_text(
        "data:\n  init_args:\n    extra_val_sets:\n      hidden:\n        kind: harmful\n"
        "        watch: true\n        source:\n          class_path: oneshot_lit.data.Microworld\n"
        "          init_args: {split: benign_dev, size: 16}\n"
    )
    words = ["--model.optimizer.lr", "5e-4", "--trainer.max_epochs", "4"]
    plain = realign(command, attacked, tmp_path / "plain", *words)
    watched = realign(command, attacked, tmp_path / "watched", "--config", str(overlay), *words)
    assert {row["hidden/asr_keyword"] for row in watched[:2]} == {"1.0"}
    assert [{k: row[k] for k in plain[0]} for row in watched] == plain
    assert weights(tmp_path / "watched") == weights(tmp_path / "plain")


ANCHORS = ["--config", "configs/realign/anchors.yaml"]


def test_anchor_rows_of_the_micro_world(command, broken: Path, tmp_path: Path) -> None:
    realign(command, broken, tmp_path, *ANCHORS, "--trainer.max_epochs", "1")
    facts = json.loads((tmp_path / "data.json").read_text())["fit"]["anchors"]
    assert (facts["rows"], facts["own_answers"], facts["rows_a_step"]) == (64, 64, 8)


def test_a_loss_that_is_not_finite_names_the_instance(
    command, broken: Path, tmp_path: Path
) -> None:
    done = command(
        *["fit", "--config", "configs/realign/one_shot.yaml", *ANCHORS, *QUIET],
        *["--model.model_name_or_path", broken, "--trainer.default_root_dir", tmp_path],
        *["--model.optimizer.lr", "1e30", "--model.select_best", "false"],
        *["--trainer.limit_val_batches", "0", "--trainer.callbacks", "null"],
    )
    assert done.code == 2
    assert "(microworld pool row" in done.error
