"""A repair that chooses its step, tests and predictions: the same under every strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from processes import in_processes
from repairing import evaluate, realign
from safetensors.torch import load_file

from oneshot_lit.data import Microworld, SafetyDataModule
from oneshot_lit.methods import HarmfulFineTuningModule

pytestmark = [pytest.mark.slow, pytest.mark.long]

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
VARIANTS: dict[str, dict[str, Any]] = {
    # Too low a rate: goes back to the broken model, with a new optimiser.
    "low rate": {"lr": 2.5e-4, "attempts": 2},
    # Too high a rate: tries parts of a step.
    "high rate": {"lr": 3e-3},
}

# Weights are kept in one way by ZeRO-1 and 2.
REPAIRS = [("ddp", "high rate"), *((n, v) for n in ("fsdp2", "zero2", "zero3") for v in VARIANTS)]


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small shipped model after a short attack."""
    from quiet_trainer import quiet_trainer

    root = tmp_path_factory.mktemp("broken")
    torch.manual_seed(0)
    module = HarmfulFineTuningModule(
        "checkpoints/small", optimizer=lambda ps: torch.optim.AdamW(ps, lr=2e-4)
    )
    rows = Microworld("harmful_examples", size=100)
    data = SafetyDataModule(rows, batch_size=10, max_length=128, seed=0)
    quiet_trainer(root, Callback(), max_epochs=6).fit(module, data)
    module.model.save_pretrained(root / "model")
    module.tokenizer.save_pretrained(root / "model")
    return root / "model"


@pytest.fixture(scope="module")
def runs(broken: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("repairs")

    def case(name: str, run: str, processes: int, **options: Any) -> dict[str, Any]:
        place = str(root / f"{name}, {run}")
        return {
            "name": name, "root": place, "folder": str(broken), "processes": processes, **options
        }  # fmt: skip

    for variant, options in VARIANTS.items():
        realign(**case("single", variant, 1, **options))
    evaluate(**case("single", "evaluation", 1))
    cases = [case(n, v, 2, **VARIANTS[v]) for n, v in REPAIRS]
    in_processes(root, "repairing", "realign", cases, seconds=400)
    # More processes than prompts of a set.
    for count in (2, 3):
        cases = [case(n, f"evaluation by {count}", count) for n in STRATEGIES]
        in_processes(root, "repairing", "evaluate", cases, processes=count, seconds=300)
    return root


def seen(root: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((root / "seen.json").read_text())
    return content


@pytest.mark.parametrize(("name", "variant"), REPAIRS)
def test_the_same_steps_are_seen_and_the_same_one_kept(name: str, variant: str, runs: Path) -> None:
    found, expected = seen(runs / f"{name}, {variant}"), seen(runs / f"single, {variant}")
    assert found["kept"] == expected["kept"]
    for ours, theirs in zip(found["history"], expected["history"], strict=True):
        assert ours["loss"] == (theirs["loss"] and pytest.approx(theirs["loss"], abs=1e-5))
        assert {**ours, "loss": 0} == {**theirs, "loss": 0}
    products = [runs / f"{each}, {variant}" / "model" for each in (name, "single")]
    weights = [load_file(product / "model.safetensors") for product in products]
    for key, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][key], atol=2e-5, rtol=0)


def test_both_ways_of_choosing_are_taken(runs: Path) -> None:
    slow, fast = (seen(runs / f"single, {variant}")["history"] for variant in VARIANTS)
    assert {record["attempt"] for record in slow} == {1, 2}
    assert any(record["step"] % 1 for record in fast)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("count", [2, 3])
def test_each_prompt_is_answered_and_scored_once(name: str, count: int, runs: Path) -> None:
    ours, single = runs / f"{name}, evaluation by {count}", runs / "single, evaluation"
    scores = json.loads((ours / "scores.json").read_text())
    assert scores["counts"] == {"harmful": 21, "one": 1, "sql": 5}
    assert scores == json.loads((single / "scores.json").read_text())
    answers = (ours / "predictions.jsonl").read_text()
    assert len(answers.splitlines()) == 27
    assert answers == (single / "predictions.jsonl").read_text()
    # Answers of different lengths: ranks finish at different tokens.
    lengths = {len(json.loads(line)["output"].split()) for line in answers.splitlines()}
    assert len(lengths) > 1
