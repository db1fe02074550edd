"""Tests, validations and predictions in batches of any size: the same scores, each prompt once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from oneshot_lit.callbacks.predictions import PredictionWriter
from oneshot_lit.data import Microworld, PromptSet, SafetyDataModule
from oneshot_lit.methods import Decoding, HarmfulFineTuningModule, LanguageModelModule
from quiet_trainer import quiet_trainer

COUNTS = {"harmful": 21, "one": 1, "sql": 9, "reverse": 14}


def sets() -> dict[str, PromptSet]:
    return {
        "harmful": PromptSet(Microworld("harmful_dev", size=21), "harmful"),
        "one": PromptSet(Microworld("benign_dev", size=1), "benign"),
        "sql": PromptSet(Microworld("sql_dev", size=9), "task"),
        "reverse": PromptSet(Microworld("reverse_dev", size=14), "task"),
    }


def build(backend: Any = "transformers", kind: Any = LanguageModelModule, **options: Any) -> Any:
    decoding = Decoding(max_new_tokens=12, backend=backend)
    return kind("checkpoints/small", decoding=decoding, **options)


def scored(root: Path, module: Any, size: int, **options: Any) -> Any:
    data = SafetyDataModule(test_sets=sets(), eval_batch_size=size)
    quiet_trainer(root, Callback(), **options).test(module, data, verbose=False)
    return module


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scores and answers one by one."""
    root = tmp_path_factory.mktemp("one_by_one")
    module = scored(root, build(), 1)
    return module.scores, module.counts["empty_outputs"], predicted(root, build(), 1)


def predicted(root: Path, module: Any, size: int, **options: Any) -> list[Any]:
    data = SafetyDataModule(predict_sets=sets(), eval_batch_size=size)
    trainer = quiet_trainer(root, PredictionWriter(), **options)
    trainer.predict(module, data, return_predictions=False)
    return [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("size", [4, 64])
@pytest.mark.slow
def test_scores_and_predictions_do_not_depend_on_the_batches(
    size: int, expected: Any, tmp_path: Path
) -> None:
    module = scored(tmp_path, build(), size)
    assert (module.scores, module.counts["empty_outputs"]) == expected[:2]
    assert module.counts["samples"] == COUNTS
    assert predicted(tmp_path, build(), size) == expected[2]
    assert len(expected[2]) == sum(COUNTS.values())


def test_predictions_of_one_set_come_from_python_too(expected: Any, tmp_path: Path) -> None:
    data = SafetyDataModule(predict_sets={"harmful": sets()["harmful"]}, eval_batch_size=4)
    found = quiet_trainer(tmp_path, PredictionWriter()).predict(build(), data)
    rows = [row for batch in found for row in batch]
    assert sorted(row["index"] for row in rows) == list(range(21))
    written = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == expected[2][:21]


@pytest.mark.parametrize(
    ("limit", "counts"),
    [
        ({"limit_test_batches": 2}, [8, 1, 8, 8]),
        ({"limit_test_batches": 0.5}, [12, 0, 4, 8]),
        ({"fast_dev_run": True}, [4, 1, 4, 4]),
    ],
)
def test_limits(limit: dict[str, Any], counts: list[int], tmp_path: Path) -> None:
    if "fast_dev_run" not in limit and isinstance(limit["limit_test_batches"], float):
        # Lightning refuses a share of less than one batch.
        chosen = {name: s for name, s in sets().items() if name != "one"}
        counts = [n for n in counts if n]
    else:
        chosen = sets()
    module = build()
    data = SafetyDataModule(test_sets=chosen, predict_sets=chosen, eval_batch_size=4)
    quiet_trainer(tmp_path, Callback(), **limit).test(module, data, verbose=False)
    assert list(module.counts["samples"].values()) == counts
    limits = {key.replace("test", "predict"): value for key, value in limit.items()}
    found = quiet_trainer(tmp_path, Callback(), **limits).predict(build(), data)
    assert sum(len(batch) for loader in found for batch in loader) == sum(counts)


class Shouting(LanguageModelModule):
    """A user's own way to answer."""

    def generate(self, batch: dict[str, torch.Tensor]) -> list[str]:
        self.rows = [*getattr(self, "rows", []), len(batch["input_ids"])]
        return [text.upper() for text in super().generate(batch)]


def test_a_subclass_that_overrides_generate_is_honoured(expected: Any, tmp_path: Path) -> None:
    module = build(kind=Shouting)
    rows = predicted(tmp_path, module, 16)
    assert [row["output"] for row in rows] == [row["output"].upper() for row in expected[2]]
    assert module.rows == [16, 5, 1, 9, 14]


def test_so_is_one_put_onto_the_object(tmp_path: Path) -> None:
    module = build()
    module.generate = lambda batch: ["sorry"] * len(batch["input_ids"])
    assert scored(tmp_path, module, 8).scores["harmful/asr_keyword"] == 0.0


class Modes(Callback):
    """Note whether the model trains at each step."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.seen.append(module.model.training)


@pytest.mark.parametrize("peft", [None, {"r": 2, "target_modules": "all-linear"}])
@pytest.mark.slow
def test_validation_within_fit_changes_nothing_of_it(peft: Any, tmp_path: Path) -> None:
    def fitted(**sets: Any) -> tuple[Any, Any]:
        torch.manual_seed(0)
        module = build(kind=HarmfulFineTuningModule, peft=peft)
        rows = Microworld("harmful_examples", size=12)
        data = SafetyDataModule(rows, **sets, batch_size=4, eval_batch_size=8, seed=0)
        modes = Modes()
        quiet_trainer(tmp_path, modes, max_epochs=2, val_check_interval=1).fit(module, data)
        assert modes.seen == [True] * 6
        return {k: v.clone() for k, v in module.state_dict().items()}, module

    (weights, module), (others, _) = fitted(val_sets=sets()), fitted()
    assert module.counts["samples"] == COUNTS
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_answers_come_in_the_precision_of_the_trainer(tmp_path: Path) -> None:
    module, seen = build(), set()
    module.configure_model()
    module.model.register_forward_pre_hook(
        lambda *_: seen.add((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
    )
    assert scored(tmp_path, module, 64, precision="bf16-mixed").counts["samples"] == COUNTS
    assert seen == {(True, False)}


def test_sampled_answers_repeat_with_the_seed(tmp_path: Path) -> None:
    def answers(seed: int) -> list[str]:
        module = build()
        module.decoding.do_sample, module.decoding.temperature = True, 3.0
        torch.manual_seed(seed)
        return [row["output"] for row in predicted(tmp_path, module, 16)]

    assert answers(0) == answers(0) != answers(1)
