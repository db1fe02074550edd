"""Selections by the command line: tables and pictures, several instances, any batch size."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from selecting import QUIET, bilevel_words, brute_words, product, read_rows

PNG = b"\x89PNG\r\n"


def run(command, words: list[str]):
    done = command(*words)
    assert done.code == 0, done.err
    return done


def test_a_bilevel_selection_shows_its_steps(command, broken: Path, tmp_path: Path) -> None:
    run(command, bilevel_words(broken, tmp_path, "--model.penalty.steps", "4"))
    rows, found = read_rows(tmp_path / "selection.csv"), product(tmp_path)
    columns = ["step", "gamma", "f", "g", "v", "gap", "entropy", "row", "id", "weight"]
    assert list(rows[0]) == columns
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    last = found["provenance"]["last"]
    for name in ("gamma", "f", "g", "v", "gap", "entropy", "weight"):
        assert float(rows[-1][name]) == last[name]
    assert float(rows[0]["entropy"]) == pytest.approx(math.log(12))
    ids = {str(each["row"]): each["id"] for each in found["ranking"]}
    assert all(row["id"] == ids[row["row"]] for row in rows)
    assert int(rows[-1]["row"]) == last["best"] + 1
    assert (tmp_path / "selection.png").read_bytes().startswith(PNG)


def test_brute_force_shows_every_candidate(command, broken: Path, tmp_path: Path) -> None:
    run(command, brute_words(broken, tmp_path, limit=2))
    rows, facts = read_rows(tmp_path / "candidates.csv"), product(tmp_path)["provenance"]
    assert [row["row"] for row in rows] == ["1", "2"]
    rates = list(facts["before"])
    assert list(rows[0]) == ["row", "id", "category", "score", *rates]
    for row, each in zip(rows, facts["candidates"], strict=True):
        assert float(row["score"]) == each["score"]
        assert {name: float(row[name]) for name in rates} == each["scores"]
    ids = {each["row"]: (each["id"], each["category"]) for each in product(tmp_path)["ranking"]}
    assert [(row["id"], row["category"]) for row in rows] == [ids[1], ids[2]]


def test_a_patch_that_diverges_is_an_outcome(command, broken: Path, tmp_path: Path) -> None:
    words = ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "1e30"]
    run(command, brute_words(broken, tmp_path, *words, limit=2))
    found = product(tmp_path)["provenance"]["candidates"]
    assert [each["loss"] for each in found] == [None, None]
    assert "NaN" not in (tmp_path / "selection.json").read_text()


@pytest.mark.slow
def test_each_of_several_chosen_is_an_instance(command, broken: Path, tmp_path: Path) -> None:
    root = tmp_path / "selection"
    words = ("--model.m", "3", "--model.penalty.steps", "3")
    done = run(command, bilevel_words(broken, root, *words))
    found = product(root)
    best = found["ranking"][:3]
    assert found["m"] == 3
    assert "chosen: " + ", ".join(each["id"] for each in best) in done.err + done.out

    def patch(name: str, *instance: object) -> bytes:
        source = ("--data.instance.source", "Microworld", "--data.instance.source.split", "pool")
        run(
            command,
            [
                *["fit", "--config", "configs/realign/one_shot.yaml", *QUIET],
                *["--model.model_name_or_path", str(broken), "--model.select_best", "false"],
                *["--trainer.max_epochs", "1", "--trainer.callbacks", "null"],
                *["--trainer.num_sanity_val_steps", "0", "--data.val_sets", "null"],
                *["--trainer.default_root_dir", str(tmp_path / name)],
                *map(str, (*instance, *source)),
            ],
        )
        return (tmp_path / name / "model" / "model.safetensors").read_bytes()

    ranked = [
        patch(
            f"rank{rank}",
            *("--data.instance", "SelectedInstance", "--data.instance.selection", root),
            *("--data.instance.rank", rank),
        )
        for rank in (1, 2, 3)
    ]
    named = [
        patch(each["id"], "--data.instance", "PoolInstance", "--data.instance.id", each["id"])
        for each in best
    ]
    assert ranked == named
    assert len(set(ranked)) == 3


def ranked(command, words: list[str], root: Path) -> dict[int, float]:
    run(command, words)
    return {each["row"]: each["score"] for each in product(root)["ranking"]}


@pytest.mark.slow
def test_rows_at_once_change_no_choice(command, broken: Path, tmp_path: Path) -> None:
    found = []
    for size in (64, 5):
        root = tmp_path / str(size)
        words = bilevel_words(broken, root, "--model.rows_at_once", size)
        found.append(ranked(command, [*words, "--model.penalty.steps", "4"], root))
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    # The weights have come apart by far more than that.
    assert max(found[0].values()) > min(found[0].values()) * 1.01


def test_rows_at_once_change_no_rule(command, broken: Path, tmp_path: Path) -> None:
    found = []
    for size in (64, 5):
        root = tmp_path / str(size)
        words = ["select", "--config", "experiments/selection/rule.yaml", *QUIET]
        words += ["--model.model_name_or_path", str(broken), "--model.aligned", "checkpoints/small"]
        words += ["--data.train.limit", "12", "--data.train.shuffle_seed", "0"]
        words += [
            "--model.harmful.size",
            "6",
            "--model.task.sources",
            "[{class_path: oneshot_lit.data.Microworld, init_args: {split: sql_dev, size: 6}}]",
        ]
        words += ["--model.rows_at_once", str(size), "--trainer.default_root_dir", str(root)]
        found.append(ranked(command, words, root))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-4)


def test_the_random_rule_is_of_the_runs_seed(command, broken: Path, tmp_path: Path) -> None:
    found = []
    for place, seed in enumerate((1, 2, 1)):
        root = tmp_path / str(place)
        words = [
            "select",
            "--config",
            "experiments/selection/rule.yaml",
            *QUIET,
            "--model.rule",
            "random",
        ]
        words += ["--model.model_name_or_path", str(broken), "--data.train.limit", "12"]
        words += ["--seed_everything", str(seed), "--trainer.default_root_dir", str(root)]
        found.append(ranked(command, words, root))
        assert product(root)["provenance"]["seed"] == seed
    assert found[0] == found[2] != found[1]
