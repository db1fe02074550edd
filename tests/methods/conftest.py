"""Models to edit: a tiny one as aligned, others near it, and two LoRA adapters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM


class Models:
    """Folders: ``aligned``, ``tuned``, ``base``, ``adapter`` and ``safe`` (adapters of aligned)."""

    def __init__(self, root: Path, start: Path) -> None:
        self.root = root
        self.aligned = root / "aligned"
        shutil.copytree(start, self.aligned)
        settings = {"do_sample": True, "temperature": 0.6, "eos_token_id": 1}
        (self.aligned / "generation_config.json").write_text(json.dumps(settings))
        self.tuned, self.base = self.near("tuned", 1), self.near("base", 2)
        self.adapter, self.safe = self.lora("adapter", 3, 2), self.lora("safe", 4, 2)

    def near(self, name: str, seed: int) -> Path:
        """Write a copy of the aligned model with other matrices."""
        folder = self.root / name
        shutil.copytree(self.aligned, folder)
        model = AutoModelForCausalLM.from_pretrained(self.aligned, dtype=torch.float32)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise, alpha=0.01)
        model.save_pretrained(folder)
        shutil.copy(self.aligned / "generation_config.json", folder)
        return folder

    def lora(self, name: str, seed: int, rank: int, **options: Any) -> Path:
        """Write a random adapter of the aligned model."""
        folder = self.root / name
        model = AutoModelForCausalLM.from_pretrained(self.aligned, dtype=torch.float32)
        wrapped = get_peft_model(
            model,
            LoraConfig(
                r=rank, lora_alpha=4, target_modules=["q_proj", "v_proj", "down_proj"], **options
            ),
        )
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in wrapped.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
        wrapped.save_pretrained(folder)
        return folder


@pytest.fixture(scope="session")
def models(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("edits"), tiny_folder)
