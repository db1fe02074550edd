"""Merged adapters, adapters on embeddings and beside whole modules: the same product everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from processes import in_processes
from safetensors.torch import load_file
from training import train

pytestmark = [pytest.mark.slow, pytest.mark.long]

STRATEGIES = ("ddp", "fsdp2", "zero2", "zero3")
BESIDE = {"r": 4, "target_modules": "all-linear", "modules_to_save": ["norm"]}
EMBEDDED = {"r": 4, "target_modules": ["embed_tokens", "q_proj"]}
VARIANTS: dict[str, dict[str, Any]] = {
    "beside": {"peft": BESIDE, "merge": True},
    "embedded": {"peft": EMBEDDED, "merge": True},
    "bfloat16": {"peft": {"r": 4, "target_modules": "all-linear"}, "merge": True,
                 "precision": "bf16-mixed"},
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root: Path = tmp_path_factory.mktemp("merged")

    def case(name: str, variant: str, processes: int) -> dict[str, Any]:
        paths = {"folder": str(tiny_folder), "rows": str(uneven_rows)}
        place = str(root / f"{name}, {variant}")
        return {"name": name, "root": place, "processes": processes, **paths, **VARIANTS[variant]}

    for variant in VARIANTS:
        train(**case("single", variant, 1))
    in_processes(root, "training", "train", [case(n, v, 2) for n in STRATEGIES for v in VARIANTS])
    return root


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_merged_product(name: str, variant: str, runs: Path, tiny_folder: Path) -> None:
    found, expected = (
        load_file(runs / f"{each}, {variant}" / "model" / "model.safetensors")
        for each in (name, "single")
    )
    base = load_file(tiny_folder / "model.safetensors")
    assert set(found) == set(expected) == set(base)
    learned = 0.0
    for key, weight in expected.items():
        assert found[key].dtype == torch.float32
        change = float((weight - base[key]).abs().max())
        learned = max(learned, change)
        # In bfloat16 gradients differ by their rounding, and the changes by a part of themselves.
        allowed = 1e-5 if variant != "bfloat16" else 0.2 * change + 1e-5
        assert float((found[key] - weight).abs().max()) <= allowed, key
    assert learned > 1e-4
