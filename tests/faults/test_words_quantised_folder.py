"""A quantised folder whose package is not installed: one line that names the package."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

CONFIGS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "optimum": {"quant_method": "gptq", "bits": 4},
    "gptqmodel": {"quant_method": "awq", "bits": 4},
    "torchao": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
}


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
@pytest.mark.parametrize("package", CONFIGS)
def test_the_missing_package_is_named(
    package: str,
    strategy: str,
    command: Callable[..., Any],
    fit_words: list[str],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if importlib.util.find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    folder = shutil.copytree(tiny_folder, tmp_path / "quantised")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = CONFIGS[package]
    (folder / "config.json").write_text(json.dumps(config))
    words = [*fit_words, "--model.model_name_or_path", folder, "--trainer.strategy", strategy]
    done = command(*words, "--trainer.devices", "1")
    if distributed.is_initialized():
        distributed.destroy_process_group()
    assert done.code == 2
    assert f"{folder}: needs a package that is not installed" in done.error
    assert package in done.error.split("not installed")[1]
    assert not (tmp_path / "run" / "model").exists()
