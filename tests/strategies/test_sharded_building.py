"""No process ever holds a whole model where its strategy cuts it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from processes import in_processes
from training import LORA

pytestmark = [pytest.mark.slow, pytest.mark.long]

ARCHITECTURE: dict[str, Any] = {
    "hidden_size": 512,
    # Large beside what the first import of a model takes.
    "num_hidden_layers": 20,
    "num_attention_heads": 8,
    "head_dim": 64,
    "intermediate_size": 1536,
}
SOURCES = ("folder", "config", "adapter")


@pytest.fixture(scope="module")
def runs(
    tiny_folder: Path, uneven_rows: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, int]:
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    root: Path = tmp_path_factory.mktemp("building")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    config = AutoConfig.from_pretrained(tiny_folder, **ARCHITECTURE, num_key_value_heads=8)
    model = LlamaForCausalLM(config)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    del model
    sources: dict[str, dict[str, Any]] = {
        "folder": {"model_name_or_path": str(root / "model")},
        "config": {
            "model_config": {"model_type": "llama", **ARCHITECTURE},
            "tokenizer_name_or_path": str(root / "model"),
        },
        "adapter": {"model_name_or_path": str(root / "model"), "peft": LORA},
    }
    with pytest.MonkeyPatch.context() as patch:
        # Freed memory would otherwise stay with the process, and be counted.
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        patch.setenv("MALLOC_TRIM_THRESHOLD_", "65536")
        cases = [("ddp", "config"), *((n, s) for n in ("fsdp2", "zero3") for s in SOURCES)]
        for name, source in cases:
            place = str(root / f"{name}, {source}")
            case = {"name": name, "root": place, "rows": str(uneven_rows), **sources[source]}
            in_processes(root, "holding", "build", [case])
    return root, size


def peaks(root: Path, name: str, source: str) -> list[int]:
    return [
        json.loads((root / f"{name}, {source}" / f"peak{rank}.json").read_text())
        for rank in range(2)
    ]


@pytest.mark.parametrize("name", ["fsdp2", "zero3"])
@pytest.mark.parametrize("source", SOURCES)
def test_a_process_takes_little_more_than_its_part(
    name: str, source: str, runs: tuple[Path, int]
) -> None:
    root, size = runs
    assert max(peaks(root, name, source)) < 0.7 * size


def test_a_whole_model_shows(runs: tuple[Path, int]) -> None:
    root, size = runs
    assert min(peaks(root, "ddp", "config")) > 0.95 * size
