"""Under ZeRO-3 no process ever holds a whole model; under FSDP2 one does at a time."""

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
CASES = (("ddp", "config"), ("fsdp2", "folder"), ("zero3", "folder"), ("zero3", "adapter"))


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
        for name, source in CASES:
            place = str(root / f"{name}, {source}")
            case = {"name": name, "root": place, "rows": str(uneven_rows), **sources[source]}
            in_processes(root, "holding", "build", [case])
    return root, size


def facts(root: Path, name: str, source: str) -> list[dict[str, float]]:
    return [
        json.loads((root / f"{name}, {source}" / f"facts{rank}.json").read_text())
        for rank in range(2)
    ]


@pytest.mark.parametrize("source", ["folder", "adapter"])
def test_a_process_takes_little_more_than_its_part(source: str, runs: tuple[Path, int]) -> None:
    root, size = runs
    assert max(each["peak"] for each in facts(root, "zero3", source)) < 0.7 * size


def test_a_whole_model_shows(runs: tuple[Path, int]) -> None:
    root, size = runs
    assert min(each["peak"] for each in facts(root, "ddp", "config")) > 0.95 * size


def test_the_processes_of_fsdp2_load_one_after_another(runs: tuple[Path, int]) -> None:
    first, second = facts(runs[0], "fsdp2", "folder")
    assert first["loaded"] <= second["began"]
