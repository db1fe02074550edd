"""Fault 7: the repair by projection steps along the gradient of all processes' rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_runs import QUIET
from processes import in_processes
from projecting import project
from safetensors.torch import load_file

from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule

ANSWERS = ["sorry .", "sorry , i can not help with that .", "no ."]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows whose answers have different lengths."""
    path = tmp_path_factory.mktemp("pool") / "rows.jsonl"
    rows = [
        [
            {"role": "user", "content": f"help me do something dangerous number {n} ."},
            {"role": "assistant", "content": answer},
        ]
        for n, answer in enumerate(ANSWERS)
    ]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return path


def words(model: Path, pool: Path, root: Path, rows: int, *more: Any) -> list[Any]:
    source = {"class_path": "oneshot_lit.data.ChatJsonl", "init_args": {}}
    source["init_args"] = {"path": str(pool), "limit": rows}
    return [
        *["edit", "--config", "configs/realign/low_rank.yaml", *QUIET],
        *["--model.model_name_or_path", model, "--trainer.default_root_dir", root],
        *["--data.instance", "null", "--data.train", json.dumps(source)],
        *["--data.shuffle", "false", "--model.guard_rows", "0", "--model.drift_rows", "4"],
        *["--model.alpha", "0.25", *more],
    ]


def change_of(root: Path) -> dict[str, torch.Tensor]:
    weights = load_file(root / "model" / "adapter_model.safetensors")
    return {
        n.removeprefix("base_model.model.").replace("lora_A.", ""): (
            weights[n.replace("lora_A", "lora_B")] @ a
        )
        for n, a in weights.items()
        if ".lora_A." in n
    }


def expected(model: Path, pool: Path, rows: int) -> dict[str, torch.Tensor]:
    """The leading direction of the mean over all labelled tokens, from whole gradients."""
    module = LanguageModelModule(str(model), dtype="float64")
    module.configure_model()
    data = SafetyDataModule(ChatJsonl(str(pool), limit=rows), batch_size=rows, shuffle=False)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    module.eval().compute_loss(next(iter(data.train_dataloader()))).backward()
    found = {}
    for name, p in module.named_parameters():
        if p.grad is not None and p.ndim == 2 and "embed" not in name and "lm_head" not in name:
            u, _, vh = torch.linalg.svd(p.grad)
            found[name.removeprefix("model.")] = -0.25 * torch.outer(u[:, 0], vh[0])
    return found


def require_equal(root: Path, wanted: dict[str, torch.Tensor]) -> None:
    found = change_of(root)
    assert set(found) == set(wanted)
    for name, change in found.items():
        assert (change - wanted[name]).abs().max() <= 1e-4 * wanted[name].abs().max(), name


# Rows (None: an instance), and how a batch of each of two processes is cut.
CASES: dict[str, dict[str, Any]] = {
    "a row each": {"limit": 2, "batch_size": 1},
    "two rows shared": {"limit": 2, "batch_size": 2, "share_batch": True},
    # The second process has a row that only fills up its batch.
    "three rows": {"limit": 3, "batch_size": 2},
    "one row": {"limit": 1, "batch_size": 1},
    "an instance": {"batch_size": 1},
}


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("projected")
    paths = {"folder": str(tiny_folder), "rows": str(pool)}
    cases = [
        {"root": str(root / name), "processes": 2, **paths, **case} for name, case in CASES.items()
    ]
    in_processes(root, "projecting", "project", cases)
    for name, case in CASES.items():
        alone = {**case, "batch_size": case.get("limit", 1), "share_batch": False}
        project(root=str(root / f"{name}, alone"), **paths, **alone)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_step_along_the_gradient_of_all_rows(
    runs: Path, tiny_folder: Path, pool: Path, name: str
) -> None:
    if (rows := CASES[name].get("limit")) is not None:
        require_equal(runs / name, expected(tiny_folder, pool, rows))
    alone = change_of(runs / f"{name}, alone")
    for key, change in change_of(runs / name).items():
        # Not only near: all processes do what one does.
        assert torch.equal(change, alone[key])


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_both_processes_ask_whether_each_row_is_refused(runs: Path, name: str) -> None:
    asked = [json.loads((runs / name / f"asked{rank}.json").read_text()) for rank in range(2)]
    assert asked == [list(range(CASES[name].get("limit", 1)))] * 2


def test_rows_that_no_pass_reads_are_refused(
    tiny_folder: Path, pool: Path, tmp_path: Path, command: Any
) -> None:
    done = command(*words(tiny_folder, pool, tmp_path, 3, "--data.batch_size", "2"))
    assert done.code == 2
    assert "data.train has 3 rows" in done.error
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("strategy", ["fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_strategies_that_shard_are_refused(
    tiny_folder: Path, pool: Path, tmp_path: Path, command: Any, strategy: str
) -> None:
    overlay = ["--config", f"configs/strategy/{strategy}.yaml", "--trainer.devices", "1"]
    done = command(*words(tiny_folder, pool, tmp_path, 1, *overlay))
    assert done.code == 2
    assert "trainer.strategy: a job needs the whole model in each process" in done.error
    assert not (tmp_path / "model").exists()
