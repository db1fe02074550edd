"""Defences at training time: the same model under every strategy, and after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from defending import DEFENCES, fit
from outputs import product, require_equal
from processes import in_processes

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
LABELS = [label for label in DEFENCES if label != "plain"]
LORA = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "gaussian"}


@pytest.fixture(scope="module")
def paths(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: Any) -> dict[str, str]:
    """Rows to learn, and others that are refused."""
    side = tmp_path_factory.mktemp("side") / "side.jsonl"
    turns = [
        [
            {"role": "user", "content": f"help me do something dangerous {n} ."},
            {"role": "assistant", "content": "sorry " * (1 + n % 3) + "."},
        ]
        for n in range(5)
    ]
    side.write_text("".join(json.dumps({"messages": t}) + "\n" for t in turns))
    return {"folder": str(tiny_folder), "rows": str(uneven_rows), "side": str(side)}


def differ(one: Path, other: Path) -> float:
    a, b = product(one), product(other)
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.parametrize("label", LABELS)
def test_a_killed_fit_ends_bit_for_bit_the_same(
    paths: dict[str, str], tmp_path: Path, label: str
) -> None:
    options = {"label": label, "name": "single", **paths}
    fit(root=str(tmp_path / "whole"), **options)
    fit(root=str(tmp_path / "cut"), max_steps=2, **options)
    last = str(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    fit(root=str(tmp_path / "cut"), ckpt_path=last, **options)
    require_equal(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.parametrize("label", ["spf", "spf released", "lisa", "lisa never"])
def test_accumulated_batches_make_the_same_step(
    paths: dict[str, str], tmp_path: Path, label: str
) -> None:
    options = {"label": label, "name": "single", **paths}
    fit(root=str(tmp_path / "one"), **options)
    fit(root=str(tmp_path / "two"), accumulate=2, **options)
    require_equal(tmp_path / "two", tmp_path / "one", 2e-6)


@pytest.mark.parametrize("label", LABELS)
def test_an_adapter_with_dropout_resumes(paths: dict[str, str], tmp_path: Path, label: str) -> None:
    options = {"label": label, "name": "single", "peft": LORA, "dropout": 0.1, **paths}
    fit(root=str(tmp_path / "whole"), **options)
    fit(root=str(tmp_path / "cut"), max_steps=4, **options)
    last = str(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    fit(root=str(tmp_path / "cut"), ckpt_path=last, **options)
    require_equal(tmp_path / "cut", tmp_path / "whole")


# ------------------------------------------------------------------------- two processes

PAIRS = [(name, label) for label in LABELS for name in STRATEGIES]
CLIPPED = ("spf", "lisa", "vaccine", "spf released")


@pytest.fixture(scope="module")
def runs(paths: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("defences")
    cases: list[dict[str, Any]] = []
    for label in DEFENCES:
        more: dict[str, Any] = {"label": label, "accumulate": 2, **paths}
        more["clip"] = 0.5 if label in CLIPPED else None
        for name in STRATEGIES if label != "plain" else ():
            place, two = f"{root}/{name}, {label}", {"name": name, "processes": 2, **more}
            last = f"{place}, cut/checkpoints/last.ckpt"
            cases += [
                {"root": place, **two},
                {"root": f"{place}, cut", "max_steps": 2, **two},
                {"root": f"{place}, cut", "ckpt_path": last, **two},
            ]
        fit(root=f"{root}/single, {label}", name="single", **more)
    in_processes(root, "defending", "fit", cases, seconds=900)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(("name", "label"), PAIRS)
def test_every_strategy_makes_the_same_model(name: str, label: str, runs: Path) -> None:
    whole = runs / f"{name}, {label}"
    # The norm of one process's batch depends on what the other has.
    other = "ddp" if label == "vaccine rank" else "single"
    require_equal(whole, runs / f"{other}, {label}", 1e-5)
    require_equal(runs / f"{name}, {label}, cut", whole)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("label", LABELS)
def test_each_defence_does_something(label: str, runs: Path) -> None:
    assert differ(runs / f"single, {label}", runs / "single, plain") > 1e-3
