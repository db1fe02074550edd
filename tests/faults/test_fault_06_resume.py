"""Fault 6: a resumed run is the unbroken one, wherever its checkpoint was written."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

sys.path.append(str(Path(__file__).parent.parent / "strategies"))

from processes import in_processes

from oneshot_lit.callbacks import AtomicCheckpointIO, RunCheckpoint
from oneshot_lit.data import ChatJsonl, PromptSet, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule

Event = tuple[Any, ...]


class Module(LanguageModelModule):
    """With a schedule by epochs; its validation answers nothing, which would take long."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "epoch"},
        }

    def validation_step(self, *_: Any) -> None:
        pass

    on_validation_epoch_start = on_validation_epoch_end = validation_step  # type: ignore[assignment]


class Witness(Callback):
    """Notes what happens, and saves a checkpoint at each of some moments."""

    def __init__(self, moments: tuple[str, ...] = ()) -> None:
        self.moments, self.events = moments, list[Event]()
        # Where, and the number of events before.
        self.saved: list[tuple[str, Path, int]] = []

    def save(self, trainer: Trainer, moment: str) -> None:
        if moment in self.moments:
            number = trainer.fit_loop.epoch_loop.total_batch_idx + 1
            path = Path(trainer.default_root_dir) / f"{moment}-{number}.ckpt"
            trainer.save_checkpoint(path)
            self.saved.append((moment, path, len(self.events)))

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        self.events.append(("start", trainer.current_epoch))

    def on_train_batch_start(self, trainer: Trainer, _: Any, batch: Any, number: int) -> None:
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        place = (trainer.current_epoch, number, trainer.global_step)
        self.events.append(("batch", *place, batch["index"].tolist(), rate))

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.save(trainer, "batch")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        self.events.append(("validation", trainer.current_epoch, trainer.global_step))
        self.save(trainer, "validation")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        self.events.append(("end", trainer.current_epoch, trainer.global_step))
        self.save(trainer, "epoch")

    @property
    def batches(self) -> list[Event]:
        return [event for event in self.events if event[0] == "batch"]


class Run:
    """A finished run: what happened, its last weights, and the step that loggers were told."""

    def __init__(
        self,
        folder: Path,
        rows: Path,
        root: Path,
        moments: tuple[str, ...] = (),
        ckpt_path: Path | None = None,
        validate: bool = False,
        workers: int = 0,
        batch_size: int = 4,
        callbacks: tuple[Callback, ...] = (),
        **settings: Any,
    ) -> None:
        torch.manual_seed(0)
        module = Module(str(folder))
        sets = {"one": PromptSet(ChatJsonl(str(rows)), "benign")} if validate else None
        data = SafetyDataModule(
            ChatJsonl(str(rows)), val_sets=sets, batch_size=batch_size, num_workers=workers, seed=3
        )
        self.witness = Witness(moments)
        trainer = Trainer(
            default_root_dir=root,
            accelerator="cpu",
            devices=1,
            num_sanity_val_steps=0,
            logger=False,
            enable_checkpointing=any(isinstance(c, RunCheckpoint) for c in callbacks),
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[self.witness, *callbacks],
            plugins=[AtomicCheckpointIO()],
            **settings,
        )
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        self.weights = {n: p.detach().clone() for n, p in module.named_parameters()}
        self.logged_steps = trainer.fit_loop.epoch_loop._batches_that_stepped

    def equals(self, other: Run) -> bool:
        """Whether the weights are the same, bit for bit."""
        return all(
            torch.equal(weight, other.weights[name]) for name, weight in self.weights.items()
        )


@pytest.fixture
def run(tiny_folder: Path, uneven_rows: Path, tmp_path: Path) -> Callable[..., Run]:
    """Eleven rows: three batches of four an epoch, or six of two."""

    def start(**options: Any) -> Run:
        return Run(tiny_folder, uneven_rows, tmp_path, **options)

    return start


SETTINGS: dict[str, dict[str, Any]] = {
    "steps": {"max_steps": 8},
    "epochs": {"max_epochs": 3},
    "both, epochs first": {"max_epochs": 3, "max_steps": 100},
    "validation": {"max_steps": 8, "validate": True},
    "validation in mid-epoch": {"max_steps": 5, "validate": True, "val_check_interval": 2},
    "validation by batches": {
        "max_steps": 8,
        "validate": True,
        "val_check_interval": 4,
        "check_val_every_n_epoch": None,
    },
    "limited": {"max_steps": 5, "limit_train_batches": 2},
    "accumulating": {"max_steps": 5, "batch_size": 2, "accumulate_grad_batches": 4},
    "one batch an epoch": {"max_steps": 3, "batch_size": 11},
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.slow
def test_a_resumed_run_is_the_unbroken_one(name: str, run: Callable[..., Run]) -> None:
    """From the ends of validations and epochs, of which the last one is the end of the run."""
    whole = run(moments=("validation", "epoch"), **SETTINGS[name])
    assert len(whole.witness.saved) >= 3
    for moment, path, before in whole.witness.saved[:-1]:
        resumed = run(ckpt_path=path, **SETTINGS[name])
        left = whole.witness.events[before:]
        if resumed.witness.events or moment == "epoch" or left[0][0] != "end":
            assert resumed.witness.events == left, path.name
            assert resumed.logged_steps == whole.logged_steps, path.name
        assert resumed.equals(whole), path.name


@pytest.mark.parametrize("name", ["steps", "epochs", "validation", "limited"])
def test_from_the_end_of_a_batch(name: str, run: Callable[..., Run]) -> None:
    """Of an epoch's last batch, too: the next epoch begins as any other."""
    whole = run(moments=("batch",), **SETTINGS[name])
    for _, path, before in whole.witness.saved[:-1]:
        resumed = run(ckpt_path=path, **SETTINGS[name])
        left = whole.witness.events[before:]
        if left[0][0] in ("validation", "end"):
            left = left[next(n for n, event in enumerate(left) if event[0] == "start") :]
        assert resumed.witness.events == left, path.name
        assert resumed.logged_steps == whole.logged_steps, path.name
        assert resumed.equals(whole), path.name


@pytest.mark.slow
def test_from_the_middle_of_a_step(run: Callable[..., Run]) -> None:
    """Gradients are in no checkpoint: the step begins again."""
    settings = SETTINGS["accumulating"]
    whole = run(moments=("batch",), **settings)
    batches = whole.witness.batches
    for _, path, before in whole.witness.saved[:-1]:
        resumed = run(ckpt_path=path, **settings)
        done = sum(event[0] == "batch" for event in whole.witness.events[:before])
        # Six batches an epoch make steps of four and of two.
        begun = done - (done % 6) % 4
        assert resumed.witness.batches == batches[begun:], path.name
        assert resumed.logged_steps == whole.logged_steps, path.name
        assert resumed.equals(whole), path.name


@pytest.mark.parametrize("workers", [0, 1])
def test_several_resumes_in_a_row_each_with_more_steps(
    workers: int, run: Callable[..., Run]
) -> None:
    """The end of a run in mid-epoch is not the end of its epoch."""
    limits = (3, 4, 5, 9, 11) if workers == 0 else (3, 5)
    whole = run(max_steps=limits[-1], workers=workers)
    path = None
    batches = []
    for limit in limits:
        part = run(moments=("epoch",), max_steps=limit, ckpt_path=path, workers=workers)
        path = part.witness.saved[-1][1]
        batches += part.witness.batches
    assert batches == whole.witness.batches
    assert part.equals(whole)
    assert part.logged_steps == whole.logged_steps


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ({"max_epochs": 1}, {"max_epochs": 3}),
        ({"max_steps": 4}, {"max_epochs": 3}),
        ({"max_epochs": 2}, {"max_steps": 8}),
        ({"max_steps": 3}, {"max_epochs": 3, "max_steps": 100}),
    ],
)
def test_another_limit_continues_a_finished_run(
    first: dict[str, int], then: dict[str, int], run: Callable[..., Run]
) -> None:
    whole = run(**then)
    part = run(moments=("epoch",), **first)
    resumed = run(ckpt_path=part.witness.saved[-1][1], **then)
    assert part.witness.batches + resumed.witness.batches == whole.witness.batches
    assert resumed.equals(whole)


def test_accumulation_that_changes_with_the_epoch(run: Callable[..., Run]) -> None:
    def settings() -> dict[str, Any]:
        scheduler = GradientAccumulationScheduler({1: 2, 2: 3})
        return {"max_steps": 12, "batch_size": 2, "callbacks": (scheduler,)}

    whole = run(moments=("batch", "epoch"), **settings())
    assert [sum(event[1] == n for event in whole.witness.batches) for n in (0, 1, 2)] == [6, 6, 6]
    for _, path, _ in whole.witness.saved[:-1:3]:
        resumed = run(ckpt_path=path, **settings())
        assert resumed.logged_steps == whole.logged_steps, path.name
        assert resumed.equals(whole), path.name


@pytest.mark.parametrize("every", [1, 2, 3])
@pytest.mark.parametrize("interval", [1.0, 2])
def test_our_own_checkpoint_loses_no_validation(
    every: int, interval: float, run: Callable[..., Run], tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"validate": True, "val_check_interval": interval}

    def part(steps: int, ckpt_path: Path | None = None) -> Run:
        saver = RunCheckpoint(every_n_train_steps=every, max_share=1.0)
        return run(max_steps=steps, callbacks=(saver,), ckpt_path=ckpt_path, **settings)

    def validations(*runs: Run) -> list[Event]:
        return [e for r in runs for e in r.witness.events if e[0] == "validation"]

    whole = part(6)
    last = tmp_path / "checkpoints" / "last.ckpt"
    for steps in (3, 4):
        last.unlink()
        first = part(steps)
        resumed = part(6, last)
        # Those of steps after the checkpoint are seen twice.
        assert sorted({*validations(first, resumed)}) == validations(whole), steps
        assert resumed.equals(whole)
        assert resumed.logged_steps == whole.logged_steps


STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
# Three batches an epoch: the end of one, and the middle of the next.
ENDS = (3, 5)


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two processes to eight steps, unbroken and after runs of fewer."""
    root: Path = tmp_path_factory.mktemp("resume")

    def case(name: str, run: str, steps: int, **options: Any) -> dict[str, Any]:
        paths = {"folder": str(tiny_folder), "rows": str(uneven_rows), "root": str(root / run)}
        limits = {"max_epochs": -1, "max_steps": steps, "processes": 2, "optimizer": "adamw"}
        return {"name": name, **paths, **limits, **options}

    cases = []
    for name in STRATEGIES:
        cases.append(case(name, f"{name}, whole", 8))
        for end in ENDS:
            first = f"{name}, to {end}"
            last = str(root / first / "checkpoints" / "last.ckpt")
            cases.append(case(name, first, end, save_every=1))
            cases.append(case(name, f"{name}, from {end}", 8, ckpt_path=last))
    in_processes(root, "training", "train", cases, seconds=400)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_two_processes(name: str, end: int, runs: Path) -> None:
    whole, resumed = (
        {log["step"]: log["train/loss"] for log in json.loads((root / "losses.json").read_text())}
        for root in (runs / f"{name}, whole", runs / f"{name}, from {end}")
    )
    assert list(whole) == list(range(1, 9))
    assert resumed == {step: loss for step, loss in whole.items() if step > end}
