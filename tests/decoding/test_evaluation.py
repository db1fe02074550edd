"""Tests, validations and predictions by a stream: the same scores, every prompt once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from oneshot_lit.callbacks.predictions import PredictionWriter
from oneshot_lit.data import Microworld, PromptSet, SafetyDataModule
from oneshot_lit.errors import OneShotError
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


def build(backend: Any = "auto", kind: Any = LanguageModelModule, **options: Any) -> Any:
    decoding = Decoding(max_new_tokens=12, backend=backend)
    return kind("checkpoints/small", decoding=decoding, **options)


def scored(root: Path, module: Any, size: int, **options: Any) -> Any:
    data = SafetyDataModule(test_sets=sets(), eval_batch_size=size)
    quiet_trainer(root, Callback(), **options).test(module, data, verbose=False)
    return module


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Scores and answers batch by batch."""
    root = tmp_path_factory.mktemp("static")
    module = scored(root, build("static"), 16)
    assert module._stream is None
    predicted(root, build("static"), 16)
    rows = [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]
    return module.scores, module.empty_counts, rows


def predicted(root: Path, module: Any, size: int, **options: Any) -> list[Any]:
    data = SafetyDataModule(predict_sets=sets(), eval_batch_size=size)
    trainer = quiet_trainer(root, PredictionWriter(), **options)
    trainer.predict(module, data, return_predictions=False)
    return [json.loads(line) for line in (root / "predictions.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_scores_are_those_of_static_batches(size: int, expected: Any, tmp_path: Path) -> None:
    module = scored(tmp_path, build("refill"), size)
    assert module._stream.slots == size
    assert (module.scores, module.empty_counts) == expected[:2]
    assert module.sample_counts == COUNTS
    assert module._stream._cache is None


@pytest.mark.parametrize("size", [1, 4, 16, 64])
def test_predictions_are_those_of_static_batches(size: int, expected: Any, tmp_path: Path) -> None:
    module = build("refill")
    assert predicted(tmp_path, module, size) == expected[2]
    # Also where Lightning has put the loaders together anew.
    assert module._stream.slots == size
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
    assert list(module.sample_counts.values()) == counts
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


class Interrupting(Callback):
    """Press Ctrl-C as soon as prompts are on their way at the end of a batch."""

    def on_test_batch_end(self, trainer: Any, module: Any, *rest: Any) -> None:
        if module._stream._rows or module._stream._waiting:
            raise KeyboardInterrupt


def test_an_interrupted_test_leaves_nothing_for_the_next(expected: Any, tmp_path: Path) -> None:
    module = build()
    data = SafetyDataModule(test_sets=sets(), eval_batch_size=4)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        quiet_trainer(tmp_path, Interrupting()).test(module, data, verbose=False)
    assert scored(tmp_path, module, 4).scores == expected[0]
    assert module.sample_counts == COUNTS


class Modes(Callback):
    """Note whether the model trains at each step."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, trainer: Any, module: Any, *rest: Any) -> None:
        self.seen.append(module.model.training)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("peft", [None, {"r": 2, "target_modules": "all-linear"}])
def test_validation_within_fit_changes_nothing_of_it(
    precision: Any, peft: Any, tmp_path: Path
) -> None:
    def fitted(backend: str) -> tuple[Any, list[dict[str, float]]]:
        torch.manual_seed(0)
        module = build(backend, HarmfulFineTuningModule, peft=peft)
        data = SafetyDataModule(
            Microworld("harmful_examples", size=12),
            val_sets=sets(),
            batch_size=4,
            eval_batch_size=8,
            seed=0,
        )
        modes, seen = Modes(), []
        trainer = quiet_trainer(
            tmp_path, modes, max_epochs=2, val_check_interval=1, precision=precision
        )
        finish = module.on_validation_epoch_end
        module.on_validation_epoch_end = lambda: (finish(), seen.append(dict(module.scores)))
        trainer.fit(module, data)
        assert modes.seen == [True] * 6
        assert module.sample_counts == COUNTS
        return {k: v.clone() for k, v in module.state_dict().items()}, seen

    (weights, scores), (others, theirs) = fitted("refill"), fitted("static")
    assert len(scores) == 7, "also the sanity check"
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    # In half precision, answers near a tie may depend on the batch.
    if precision == "32-true":
        assert scores == theirs


def test_the_last_answers_come_in_the_precision_of_the_others(tmp_path: Path) -> None:
    module, seen = build(), set()
    module.configure_model()
    module.model.register_forward_pre_hook(
        lambda *_: seen.add((torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
    )
    # All prompts fit into the slots, so the epoch's end answers them.
    assert scored(tmp_path, module, 64, precision="bf16-mixed").sample_counts == COUNTS
    assert seen == {(True, False)}


def test_sampling_goes_batch_by_batch(tmp_path: Path) -> None:
    module = build()
    module.decoding.do_sample = True
    assert scored(tmp_path, module, 16).sample_counts == COUNTS
    assert module._stream is None
    module.decoding.backend = "refill"
    with pytest.raises(OneShotError, match=r"model\.decoding\.backend refill: .*sampled"):
        scored(tmp_path, module, 16)


def test_a_batch_by_hand_is_answered_the_same(tmp_path: Path) -> None:
    answers = []
    for backend in ("static", "refill"):
        module = build(backend).eval()
        module.configure_model()
        module.eval()
        data = SafetyDataModule(test_sets=sets(), eval_batch_size=21)
        data.use_tokenizer(module.tokenizer)
        data.setup("test")
        with torch.no_grad():
            answers.append(module.generate(next(iter(data.test_dataloader()[0]))))
    assert answers[0] == answers[1]
    assert len(answers[0]) == 21
