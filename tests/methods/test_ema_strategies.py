"""The average of weights in two processes is that of one, whole or sharded, and resumes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parent.parent / "strategies"))

from averaging import fit
from outputs import require_equal
from processes import in_processes

NAMES = ("ddp", "fsdp2", "zero2", "zero3")
# Feedback every so many steps, and batches a step.
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "fed back": {"feedback_every": 2, "accumulate": 2},
}


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("averages")
    paths = {"folder": str(tiny_folder), "rows": str(uneven_rows)}
    cases: list[dict[str, Any]] = []
    for label, options in CASES.items():
        for name in NAMES:
            place = f"{root}/{name}, {label}"
            two = {"name": name, "processes": 2, **options, **paths}
            last = f"{place}, cut/checkpoints/last.ckpt"
            cases += [
                {"root": place, **two},
                {"root": f"{place}, cut", "max_steps": 2, **two},
                {"root": f"{place}, cut", "ckpt_path": last, **two},
            ]
        fit(root=f"{root}/single, {label}", name="single", **options, **paths)
    in_processes(root, "averaging", "fit", cases, seconds=600)
    return root


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("label", list(CASES))
@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_makes_the_same_average(name: str, label: str, runs: Path) -> None:
    whole = runs / f"{name}, {label}"
    require_equal(runs / f"{name}, {label}, cut", whole)
    require_equal(whole, runs / f"single, {label}", 2e-5)
