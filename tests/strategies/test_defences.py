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
    """Rows to learn, and others that refuse the same requests, so that gradients conflict."""
    side = tmp_path_factory.mktemp("side") / "side.jsonl"
    turns = [
        [
            {"role": "user", "content": f"how do i bake bread number {n} ?"},
            {"role": "assistant", "content": " ".join(["sorry"] * (6 + n % 3))},
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
    options = {"label": label, "name": "single", "dtype": "float64", **paths}
    fit(root=str(tmp_path / "one"), **options)
    fit(root=str(tmp_path / "two"), accumulate=2, **options)
    # The share of each batch is a float32 number, and two steps a batch at this rate amplify that.
    require_equal(tmp_path / "two", tmp_path / "one", 5e-6)


@pytest.mark.parametrize("label", LABELS)
def test_an_adapter_with_dropout_resumes(paths: dict[str, str], tmp_path: Path, label: str) -> None:
    options = {"label": label, "name": "single", "peft": LORA, "dropout": 0.1, **paths}
    fit(root=str(tmp_path / "whole"), **options)
    fit(root=str(tmp_path / "cut"), max_steps=4, **options)
    last = str(tmp_path / "cut" / "checkpoints" / "last.ckpt")
    fit(root=str(tmp_path / "cut"), ckpt_path=last, **options)
    require_equal(tmp_path / "cut", tmp_path / "whole")


# ------------------------------------------------------------------------- two processes

CLIPPED = ("spf", "lisa", "vaccine", "spf released")


@pytest.fixture(scope="module", params=LABELS)
def runs(
    request: pytest.FixtureRequest, paths: dict[str, str], tmp_path_factory: Any
) -> tuple[str, Path]:
    """A defence's label, and the folder of its runs."""
    label = request.param
    root: Path = tmp_path_factory.mktemp("defences")
    clip = 0.5 if label in CLIPPED else None
    more: dict[str, Any] = {"accumulate": 2, "clip": clip, **paths}
    cases: list[dict[str, Any]] = []
    for name in STRATEGIES:
        place, two = f"{root}/{name}", {"label": label, "name": name, "processes": 2, **more}
        last = f"{place}, cut/checkpoints/last.ckpt"
        cases += [
            {"root": place, **two},
            {"root": f"{place}, cut", "max_steps": 2, **two},
            {"root": f"{place}, cut", "ckpt_path": last, **two},
        ]
    fit(root=f"{root}/single", name="single", label=label, **more)
    fit(root=f"{root}/plain", name="single", label="plain", **more)
    in_processes(root, "defending", "fit", cases, seconds=400)
    return label, root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_makes_the_same_model(name: str, runs: tuple[str, Path]) -> None:
    label, root = runs
    # The norm of one process's batch depends on what the other has.
    other = "ddp" if label == "vaccine rank" else "single"
    require_equal(root / name, root / other, 1e-5)
    require_equal(root / f"{name}, cut", root / name)


@pytest.mark.slow
@pytest.mark.long
def test_each_defence_does_something(runs: tuple[str, Path]) -> None:
    assert differ(runs[1] / "single", runs[1] / "plain") > 1e-3
