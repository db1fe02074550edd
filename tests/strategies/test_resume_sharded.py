"""Killed runs of each strategy go on exactly; checkpoints of another kind are refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from processes import in_processes
from training import LORA

from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.folders import (
    add_own_state,
    facts_of,
    require_resumable,
    whole_folder,
)

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
# With dropout, so that a random state that was lost shows.
DROPOUT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 49,
    "attention_dropout": 0.2,
}
# Nine steps in three epochs; the fifth is in the middle of one.
RUN: dict[str, Any] = {"optimizer": "adamw", "epochs": 3, "config": DROPOUT}
ADAPTER: dict[str, Any] = {"optimizer": "adamw", "epochs": 3, "peft": LORA}


def losses(root: Path) -> dict[int, float]:
    return {
        log["step"]: log["train/loss"] for log in json.loads((root / "losses.json").read_text())
    }


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("resume")

    def case(name: str, run: str, **options: Any) -> dict[str, Any]:
        place = root / f"{name}, {run}"
        if "resume" in options:
            options["ckpt_path"] = str(root / options.pop("resume") / "checkpoints" / "last.ckpt")
        paths = {"folder": str(tiny_folder), "rows": str(uneven_rows), "root": str(place)}
        return {"name": name, "processes": 2, **paths, **options}

    def go(*cases: dict[str, Any], processes: int = 2) -> None:
        in_processes(root, "training", "train", list(cases), processes=processes, seconds=300)

    for name in STRATEGIES:
        # Saved after each step; all processes are killed as the sixth begins.
        with pytest.raises(AssertionError, match=r"^\[-9, -9\]"):
            go(case(name, "killed", save_every=1, kill_at=5, **RUN))
    both = [(n, f"{n}, killed") for n in STRATEGIES]
    go(
        *[case(n, "whole", **RUN) for n in STRATEGIES],
        *[case(n, "resumed", resume=from_, **RUN) for n, from_ in both],
        *[case(n, "adapter", save_every=5, **ADAPTER) for n in STRATEGIES],
        *[case(n, "adapter resumed", resume=f"{n}, adapter", **ADAPTER) for n in STRATEGIES],
        # Without dropout: its random numbers do depend on the number of processes.
        *[case(n, "plain", save_every=5, optimizer="adamw") for n in STRATEGIES],
        case("zero2", "other stage", resume="zero1, plain", optimizer="adamw"),
        case("zero3", "from a file", resume="ddp, plain", optimizer="adamw"),
        case("fsdp2", "from zero", resume="zero3, plain", optimizer="adamw"),
        case("ddp", "from a folder", resume="fsdp2, plain", optimizer="adamw"),
    )
    others = [(n, f"{n}, plain") for n in ("ddp", "fsdp2", "zero1", "zero3")]
    for count in (1, 4):
        options = {"processes": count, "optimizer": "adamw"}
        go(*[case(n, f"on {count}", resume=f, **options) for n, f in others], processes=count)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize(("run", "whole"), [("resumed", "whole"), ("adapter resumed", "adapter")])
def test_a_resumed_run_repeats_the_unbroken_one(
    name: str, run: str, whole: str, runs: Path
) -> None:
    found, expected = losses(runs / f"{name}, {run}"), losses(runs / f"{name}, {whole}")
    assert list(found) == [6, 7, 8, 9]
    assert found == {step: expected[step] for step in found}


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
@pytest.mark.parametrize("count", [1, 4])
def test_on_another_number_of_processes(name: str, count: int, runs: Path) -> None:
    found, expected = losses(runs / f"{name}, on {count}"), losses(runs / f"{name}, plain")
    assert list(found) == [6]
    assert found[6] == pytest.approx(expected[6], abs=1e-5)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("zero1, on 1", "saved by deepspeed_zero1 on 2 processes and cannot be resumed by deepspe"),
        ("zero3, on 4", "saved by deepspeed_zero3 on 2 processes and cannot be resumed by deepspe"),
        ("zero2, other stage", "saved by deepspeed_zero1 on 2 processes"),
        ("zero3, from a file", "saved by single or ddp and cannot be resumed by deepspeed_zero3"),
        (
            "fsdp2, from zero",
            "saved by deepspeed_zero3 on 2 processes and cannot be resumed by fsd",
        ),
        (
            "ddp, from a folder",
            "saved by fsdp2 on 2 processes and cannot be resumed by single or d",
        ),
    ],
)
def test_what_cannot_be_resumed_says_why(run: str, message: str, runs: Path) -> None:
    error = (runs / run / "error0").read_text()
    assert message in error
    assert "oneshot-lit export --checkpoint" in error
    assert "\n" not in error


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
def test_an_adapters_checkpoint_is_without_its_base(name: str, runs: Path) -> None:
    path = runs / f"{name}, adapter" / "checkpoints" / "last.ckpt"
    if path.is_file():
        saved = torch.load(path, weights_only=True)["state_dict"]
        assert saved
        assert all("lora_" in key for key in saved)
    elif name == "fsdp2":
        from torch.distributed.checkpoint import FileSystemReader

        keys = FileSystemReader(path).read_metadata().state_dict_metadata
        weights = [key for key in keys if key.startswith("state_dict.")]
        assert weights
        assert all("lora_" in key for key in weights)
    else:
        file = next((path / "checkpoint").glob("*model_states.pt"))
        saved = torch.load(file, weights_only=True)
        assert not [key for key in saved["module"] if "lora_" not in key]


# ---------------------------------------------------------------- folders alone


class One:
    """What a folder asks of a strategy that has one process."""

    is_global_zero, global_rank, world_size = True, 0, 1

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self, name: str) -> None:
        pass


def test_a_checkpoint_that_fails_leaves_the_last_one(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    with whole_folder(One(), target, {"kind": "fsdp2"}, {}) as folder:
        (folder / "shard").write_text("first")
        assert not target.exists()
    assert facts_of(target) == {"kind": "fsdp2", "run": None}

    def fail() -> None:
        with whole_folder(One(), target, {"kind": "fsdp2"}, {}) as folder:
            (folder / "shard").write_text("half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OneShotError, match=r"last.ckpt.*disk"):
        fail()
    assert (target / "shard").read_text() == "first"
    # What is left of it is hidden, and gone with the next one.
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", ".last.ckpt.new"}
    with whole_folder(One(), target, {"kind": "fsdp2"}, {}) as folder:
        (folder / "shard").write_text("second")
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_what_a_killed_save_left_is_no_obstacle(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    (tmp_path / ".last.ckpt.new").mkdir()
    (tmp_path / ".last.ckpt.new" / "old part").touch()
    with whole_folder(One(), target, {"kind": "fsdp2"}, {}) as folder:
        (folder / "shard").touch()
    assert sorted(path.name for path in target.iterdir()) == ["checkpoint.json", "shard"]


def test_own_state_comes_back_to_its_process(tmp_path: Path) -> None:
    target = tmp_path / "last.ckpt"
    saved: dict[str, Any] = {"own_state": {"weights": torch.tensor([3])}}
    with whole_folder(One(), target, {"kind": "fsdp2"}, saved):
        assert saved == {}
    checkpoint: dict[str, Any] = {}
    add_own_state(One(), target, checkpoint)
    assert checkpoint["own_state"]["weights"] == 3
    with pytest.raises(OneShotError, match="resume with 1 process"):
        add_own_state(SimpleNamespace(global_rank=0, world_size=4), target, checkpoint)


def test_only_whole_models_are_evaluated(tmp_path: Path) -> None:
    with whole_folder(One(), tmp_path / "c", {"kind": "deepspeed", "stage": 3}, {}):
        pass
    with pytest.raises(OneShotError, match="holds no whole model to evaluate; convert it"):
        require_resumable(tmp_path / "c", {"kind": "deepspeed", "stage": 3}, fitting=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(OneShotError, match="a folder, but no checkpoint"):
        require_resumable(tmp_path / "empty", {"kind": "fsdp2"}, fitting=True)
