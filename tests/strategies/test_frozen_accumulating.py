"""Frozen entries under accumulation, where DeepSpeed is asked to step after every batch."""

from __future__ import annotations

from pathlib import Path

import pytest
from outputs import require_equal
from processes import in_processes
from seams import fit

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_they_are_put_back_after_the_step(
    name: str, tiny_folder: Path, uneven_rows: Path, tmp_path: Path
) -> None:
    words = {"kind": "Frozen", "folder": str(tiny_folder), "rows": str(uneven_rows)}
    fit(name="single", root=f"{tmp_path}/single", accumulate=2, **words)
    case = {"name": name, "root": f"{tmp_path}/two", "processes": 2, "accumulate": 2, **words}
    in_processes(tmp_path, "seams", "fit", [case])
    require_equal(tmp_path / "two", tmp_path / "single", 1e-5)
