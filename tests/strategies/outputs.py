"""The weights that a run wrote, compared with those of another."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor


def product(root: Path) -> dict[str, Tensor]:
    (file,) = [p for p in (root / "model").iterdir() if p.suffix == ".safetensors"]
    return load_file(file)


def require_equal(one: Path, other: Path, tolerance: float = 0.0) -> None:
    got, wanted = product(one), product(other)
    assert set(got) == set(wanted)
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, atol=tolerance, rtol=0, msg=name)
