"""Fault 5: the gradient of a step is the mean over all its labelled tokens, however it is split."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, IterableDataset

sys.path.append(str(Path(__file__).parent.parent / "strategies"))

from processes import in_processes
from step_gradients import apart, data_of, measure, reference

from oneshot_lit.data.datasets import Collate
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models.loss import IGNORE_INDEX, next_token_loss

# Eleven rows of different lengths, four a step: the last step of an epoch is of three.
STEPS = [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.0)


def check(steps: Any, paths: tuple[str, str], expected: list[list[int]], within: float) -> None:
    assert steps.rows == expected
    for chosen, found, logged in zip(expected, steps.gradients, steps.logged, strict=True):
        gradients, loss = reference(*paths, chosen)
        assert apart(found, gradients) <= within, chosen
        norm = torch.stack([g.norm() for g in gradients.values()]).norm()
        assert logged["train/loss"] == pytest.approx(loss, rel=max(within, 1e-6))
        assert logged["train/grad_norm"] == pytest.approx(float(norm), rel=max(within, 1e-6))


@pytest.fixture
def paths(tiny_folder: Path, uneven_rows: Path) -> tuple[str, str]:
    return str(tiny_folder), str(uneven_rows)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(4, 1), (2, 2), (1, 4)])
def test_any_split_gives_the_same_steps(
    batch_size: int, accumulate: int, paths: tuple[str, str], tmp_path: Path
) -> None:
    steps = measure(
        str(tmp_path), *paths, accumulate=accumulate, batch_size=batch_size, dtype="float64"
    )
    check(steps, paths, STEPS, 1e-7)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": 3, "accumulate": 3}, [list(range(9)), [9, 10]]),
        ({"batch_size": 1, "accumulate": 20}, [list(range(11))]),
        (
            {"batch_size": 2, "accumulate": 2, "trainer": {"limit_train_batches": 3}},
            [[0, 1, 2, 3], [4, 5]],
        ),
        ({"batch_size": 2, "accumulate": 2, "trainer": {"max_steps": 2}}, STEPS[:2]),
        ({"batch_size": 1, "accumulate": 4, "num_workers": 1}, STEPS),
    ],
    ids=["short last", "one step", "limited", "max_steps", "workers"],
)
def test_other_windows(
    options: dict[str, Any], expected: Any, paths: tuple[str, str], tmp_path: Path
) -> None:
    check(measure(str(tmp_path), *paths, **options), paths, expected, 1e-5)


def test_in_mixed_precision(paths: tuple[str, str], tmp_path: Path) -> None:
    one, four = (
        measure(str(tmp_path), *paths, precision="bf16-mixed", accumulate=n, batch_size=4 // n)
        for n in (1, 4)
    )
    for a, b in zip(one.gradients, four.gradients, strict=True):
        assert apart(b, {name: g.double() for name, g in a.items()}) < 0.02


def test_accumulation_that_changes_with_the_epoch(paths: tuple[str, str], tmp_path: Path) -> None:
    callbacks = [GradientAccumulationScheduler({0: 4, 1: 2})]
    trainer = {"callbacks": callbacks, "max_epochs": 2}
    steps = measure(str(tmp_path), *paths, batch_size=1, trainer=trainer)
    pairs = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10]]
    check(steps, paths, [*STEPS, *pairs], 1e-5)


@pytest.mark.parametrize(("batch_size", "accumulate"), [(1, 1), (1, 4), (3, 2)])
def test_one_repeated_instance(
    batch_size: int, accumulate: int, paths: tuple[str, str], tmp_path: Path
) -> None:
    """Each step, also the last and shorter one, has the gradient of the one row."""
    options: dict[str, Any] = {"instance": True, "batch_size": batch_size}
    steps = measure(str(tmp_path), *paths, accumulate=accumulate, **options)
    expected, _ = reference(*paths, [0], instance=True)
    assert len(steps.gradients) == -(-11 // (batch_size * accumulate))
    for found in steps.gradients:
        assert apart(found, expected) <= 1e-5


@pytest.mark.slow
def test_spectra_are_those_of_the_step(paths: tuple[str, str], tmp_path: Path) -> None:
    measure(str(tmp_path), *paths, accumulate=4, batch_size=1, spectra=True)
    found: dict[tuple[int, str], list[float]] = {}
    with (tmp_path / "spectra" / "spectra.csv").open() as file:
        for row in csv.DictReader(file):
            key = int(row["step"]), row["parameter"]
            found.setdefault(key, []).append(float(row["singular_value"]))
    for step, chosen in enumerate(STEPS):
        gradients, _ = reference(*paths, chosen)
        for name in ("lm_head.weight", "model.layers.0.mlp.down_proj.weight"):
            expected = torch.linalg.svdvals(gradients[f"model.{name}"])
            values = torch.tensor(found[step, name]).double()
            assert (values - expected[: len(values)]).abs().max() <= 1e-5 * expected[0]


class Endless(IterableDataset[Any]):
    """Rows whose number nobody is told."""

    def __init__(self, rows: Any) -> None:
        self.rows = rows

    def __iter__(self) -> Any:
        return iter(self.rows)


@pytest.mark.parametrize("sized", [True, False])
def test_a_loader_of_ones_own(sized: bool, paths: tuple[str, str], tmp_path: Path) -> None:
    folder, rows = paths
    module = LanguageModelModule(folder, optimizer=sgd)
    source = data_of(rows)
    source.use_tokenizer(module.tokenizer)
    source.setup("fit")
    kept = [source.training[n] for n in range(11)]  # type: ignore[index]
    collate = Collate(module.tokenizer.pad_token_id, False)
    loader = DataLoader(kept if sized else Endless(kept), batch_size=1, collate_fn=collate)
    steps = measure(str(tmp_path), *paths, accumulate=4, module=module, data=loader)
    check(steps, paths, STEPS, 1e-5)


class FirstHalf(LanguageModelModule):
    """Another mean: over the first two labelled tokens of each row, chosen by a transfer hook."""

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        labelled = (batch["labels"] != IGNORE_INDEX).cumsum(1)
        batch["kept"] = (batch["labels"] != IGNORE_INDEX) & (labelled <= 2)
        # Twice the same would be another batch.
        batch["input_ids"] += 0
        return batch

    def loss_weight(self, batch: Any) -> torch.Tensor:
        return batch["kept"].sum()

    def compute_loss(self, batch: Any) -> torch.Tensor:
        labels = batch["labels"].masked_fill(~batch["kept"], IGNORE_INDEX)
        return next_token_loss(self(batch["input_ids"], batch["attention_mask"]), labels)


def test_an_objective_of_ones_own(paths: tuple[str, str], tmp_path: Path) -> None:
    folder, _ = paths
    one, four = (
        measure(
            str(tmp_path),
            *paths,
            accumulate=n,
            batch_size=4 // n,
            module=FirstHalf(folder, optimizer=sgd),
        )
        for n in (1, 4)
    )
    for a, b in zip(one.gradients, four.gradients, strict=True):
        assert apart(b, {name: g.double() for name, g in a.items()}) <= 1e-5
    assert apart(one.gradients[0], reference(*paths, STEPS[0])[0]) > 0.01


def test_a_batch_without_labels_adds_nothing(paths: tuple[str, str], tmp_path: Path) -> None:
    folder, rows = paths
    module = LanguageModelModule(folder, optimizer=sgd)
    source = data_of(rows)
    source.use_tokenizer(module.tokenizer)
    source.setup("fit")
    # The negative number stands for a row that carries no loss.
    kept = [source.training[n] for n in (0, -2, 2, 3)]  # type: ignore[index]
    collate = Collate(module.tokenizer.pad_token_id, False)
    loader = DataLoader(kept, batch_size=1, collate_fn=collate)  # type: ignore[arg-type]
    steps = measure(str(tmp_path), *paths, accumulate=4, module=module, data=loader)
    assert apart(steps.gradients[0], reference(*paths, [0, 2, 3])[0]) <= 1e-5


SPLITS = {"two": {"accumulate": 2}, "four": {"accumulate": 4}, "plain": {"accumulate": 1}}


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes, one row a batch; all cases one after another in the same processes."""
    root: Path = tmp_path_factory.mktemp("steps")
    common = {"folder": str(tiny_folder), "rows": str(uneven_rows), "processes": 2, "batch_size": 1}
    cases = [
        {"root": str(root / f"{name}, {split}"), "name": name, **common, **options}
        for name in STRATEGIES
        for split, options in SPLITS.items()
    ]
    in_processes(root, "step_gradients", "measure", cases, seconds=400)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(("split", "size"), [("plain", 2), ("two", 4), ("four", 8)])
def test_two_processes(
    name: str, split: str, size: int, runs: Path, paths: tuple[str, str]
) -> None:
    """Of eleven rows the last step has fewer, and one of the processes a row without loss."""
    found = torch.load(runs / f"{name}, {split}" / "steps.pt", weights_only=True)
    assert len(found["gradients"]) == -(-11 // size)
    for n, (gradients, logged) in enumerate(zip(found["gradients"], found["logged"], strict=True)):
        expected, loss = reference(*paths, list(range(11))[n * size : (n + 1) * size])
        assert apart(gradients, expected) <= 1e-5, n
        assert logged["train/loss"] == pytest.approx(loss, rel=1e-5)
