"""Mistakes of a selection: one line and exit code 2, and what stood there before still stands."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest
from selecting import bilevel_words, brute_words, enumeration_words, product

SMALL = Path("checkpoints/small")
EARLIER = ("selection.json", "selection.csv", "selection.png")


def refused(command, broken: Path, root: Path, *words: object) -> str:
    """Return the error of a selection in a folder that holds an earlier one's files."""
    root.mkdir(exist_ok=True)
    for name in EARLIER:
        (root / name).write_text(f"earlier {name}")
    done = command(*bilevel_words(broken, root, "--overwrite", "true", *words))
    assert done.code == 2, done.err
    for name in EARLIER:
        assert (root / name).read_text() == f"earlier {name}"
    return done.error


def changed(folder: Path, change) -> Path:
    """Return a copy of the small model after `change(model)`."""
    from transformers import AutoModelForCausalLM

    shutil.copytree(SMALL, folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    change(model)
    model.save_pretrained(folder)
    return folder


def test_a_pool_smaller_than_m(command, broken: Path, tmp_path: Path) -> None:
    error = refused(command, broken, tmp_path / "run", "--data.train.limit", "2", "--model.m", "3")
    assert "data.train: the pool has 2 candidates, fewer than model.m=3" in error


def test_a_row_without_a_refusal(command, broken: Path, tmp_path: Path) -> None:
    rows = [("make a lumdra bomb .", "sorry , i can not help ."), ("make zork .", "take vuke .")]
    path = tmp_path / "pool.jsonl"
    turns = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
        for asked, answered in rows
    ]
    path.write_text("".join(json.dumps({"messages": each}) + "\n" for each in turns))
    source = json.dumps(
        {"class_path": "oneshot_lit.data.ChatJsonl", "init_args": {"path": str(path)}}
    )
    words = bilevel_words(broken, tmp_path / "run")
    place = words.index("--data.train.limit")
    done = command(*words[:place], *words[place + 4 :], "--data.train", source)
    assert done.code == 2
    assert f"{path} row 2: the candidate's answer has no refusal phrase" in done.error
    assert "model.require_refusals" in done.error
    assert "vuke" not in done.err
    assert not (tmp_path / "run" / "selection.json").exists()


@pytest.mark.parametrize("sets", ["val_sets", "test_sets"])
def test_a_prompt_of_pool_and_evaluation(command, broken: Path, tmp_path: Path, sets: str) -> None:
    from oneshot_lit.data import Microworld

    first = Microworld("pool", shuffle_seed=0, limit=1).load()[0]
    source = {"split": "pool", "shuffle_seed": 0, "limit": 1}
    given = {
        "mine": {
            "kind": "harmful",
            "source": {"class_path": "oneshot_lit.data.Microworld", "init_args": source},
        }
    }
    error = refused(command, broken, tmp_path / "run", f"--data.{sets}", json.dumps(given))
    assert f"{first.origin} (" in error
    assert "set mine): the prompt is also in the pool" in error
    assert first.messages[0].content not in error


def test_models_that_number_tokens_differently(command, broken: Path, tmp_path: Path) -> None:
    aligned = tmp_path / "aligned"
    shutil.copytree(SMALL, aligned)
    content = json.loads((aligned / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    one, other = sorted(vocabulary, key=vocabulary.__getitem__)[-2:]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    (aligned / "tokenizer.json").write_text(json.dumps(content))
    error = refused(command, broken, tmp_path / "run", "--model.aligned", aligned)
    assert f"model.aligned: the vocabularies of {aligned} and {broken} differ" in error
    assert f"give the model that {broken} was made of" in error


def test_models_of_other_vocabulary_sizes(command, broken: Path, tmp_path: Path) -> None:
    aligned = changed(tmp_path / "aligned", lambda model: model.resize_token_embeddings(600))
    error = refused(command, broken, tmp_path / "run", "--model.aligned", aligned)
    assert f"model.aligned: the vocabularies of {aligned} and {broken} differ" in error


def test_divergence_at_the_first_step(command, broken: Path, tmp_path: Path) -> None:
    error = refused(command, broken, tmp_path / "run", *_plain_descent("1e30"))
    assert "model.optimizer.lr: the selection diverges at its first step" in error


def _plain_descent(lr: str) -> list[str]:
    return ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", lr]


def test_divergence_later_is_restored_and_said(command, broken: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        done = command(*bilevel_words(broken, tmp_path, *_plain_descent("1e3")))
    assert done.code == 0, done.err
    found = product(tmp_path)
    steps = found["provenance"]["steps"]
    assert 1 <= steps < 8
    text = found["provenance"]["diverged"]
    assert f"step {steps} is not finite" in text
    assert f"the weights are those of step {steps - 1}" in text
    assert any("the selection diverges: step" in str(each.message) for each in said)
    assert sum(row["score"] for row in found["ranking"]) == pytest.approx(1)


def test_a_worse_objective_is_said(command, broken: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        words = ["--model.penalty.steps", "3", "--model.optimizer.lr", "0.3"]
        done = command(*bilevel_words(broken, tmp_path, *words))
    assert done.code == 0, done.err
    assert any("the upper objective rose from" in str(each.message) for each in said)


def test_a_selection_is_no_training(command, broken: Path, tmp_path: Path) -> None:
    words = enumeration_words(broken, tmp_path)
    done = command("fit", *words[1:])
    assert done.code == 2
    assert "EnumerationModule is no training: run oneshot-lit select in place of fit" in done.error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--data.val_sets", "null"), "data.val_sets: brute force needs a harmful and a harmless"),
    ],
)
def test_brute_force_measures_on_all_prompts(
    command, broken: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    done = command(*brute_words(broken, tmp_path, *words))
    assert done.code == 2
    assert message in done.error
    assert not (tmp_path / "candidates.csv").exists()
