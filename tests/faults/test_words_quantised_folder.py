"""A quantised folder: one line that says how to train, or which package is not installed."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import distributed
from transformers import LlamaForCausalLM

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.methods.posttuning.weight_edit import WeightEdit
from oneshot_lit.models import loading

CONFIGS: dict[str, dict[str, Any]] = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "optimum": {"quant_method": "gptq", "bits": 4},
    "gptqmodel": {"quant_method": "awq", "bits": 4},
    "torchao": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    "compressed-tensors": {"quant_method": "compressed-tensors"},
}


def quantised(tiny_folder: Path, folder: Path, options: dict[str, Any]) -> Path:
    """The tiny model, whose config calls it quantised."""
    shutil.copytree(tiny_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = options
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# Methods of which transformers writes out the weights, and for which PEFT has adapters.
@pytest.mark.parametrize(
    ("options", "method", "weights", "adapter"),
    [
        (CONFIGS["bitsandbytes"], "bitsandbytes", "dequantize()", True),
        # As early versions wrote it.
        ({"load_in_8bit": True}, "bitsandbytes", "dequantize()", True),
        (CONFIGS["optimum"], "gptq", None, True),
        (CONFIGS["gptqmodel"], "awq", None, True),
        ({"quant_method": "fp8"}, "fp8", "FineGrainedFP8Config(dequantize=True)", False),
        ({"quant_method": "mxfp4"}, "mxfp4", "Mxfp4Config(dequantize=True)", False),
        (CONFIGS["compressed-tensors"], "compressed-tensors", "dequantize=True", False),
        ({"quant_method": "unheard-of"}, "unheard-of", None, False),
    ],
)
def test_how_to_get_weights_that_train(
    options: dict[str, Any],
    method: str,
    weights: str | None,
    adapter: bool,
    command: Callable[..., Any],
    fit_words: list[str],
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    folder = quantised(tiny_folder, tmp_path / "quantised", options)
    words = [*fit_words, "--model.model_name_or_path", folder]
    done = command(*words)
    assert done.code == 2
    (line,) = done.error.strip().splitlines()
    assert f"{folder}: is quantised ({method}) and cannot be changed; give the original" in line
    assert (weights or "original weights") in line
    assert ("dequantize" in line) == (weights is not None)
    assert ("--model.peft" in line) == adapter
    if not adapter:
        again = command(*words, "--model.peft", "{r: 2}")
        assert again.code == 2
        assert f"is quantised ({method}) and takes no adapter; give" in again.error
    assert not (tmp_path / "run" / "model").exists()


def test_a_weight_edit_refuses_it(tiny_folder: Path, tmp_path: Path) -> None:
    class Edit(WeightEdit):
        def sources(self) -> dict[str, str]:
            return {"tuned": str(tmp_path / "quantised")}

    quantised(tiny_folder, tmp_path / "quantised", CONFIGS["optimum"])
    with pytest.raises(OneShotError, match=r"is quantised \(gptq\) and cannot be changed"):
        Edit().folders()


def test_what_transformers_cannot_train(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class OldAwq:
        is_trainable = False

    def load(*args: Any, **options: Any) -> Any:
        return LlamaForCausalLM.from_pretrained(tiny_folder)

    module = LanguageModelModule(str(tiny_folder), peft={"r": 2})
    monkeypatch.setattr(loading, "load_model", load)
    module.configure_model()
    monkeypatch.setattr(LlamaForCausalLM, "hf_quantizer", OldAwq(), raising=False)
    with pytest.raises(OneShotError, match=r"cannot train on this quantisation \(OldAwq\)"):
        LanguageModelModule(str(tiny_folder), peft={"r": 2}).configure_model()


@pytest.mark.parametrize("strategy", ["auto", "fsdp2"])
@pytest.mark.parametrize("package", CONFIGS)
def test_the_missing_package_is_named(
    package: str,
    strategy: str,
    command: Callable[..., Any],
    fit_words: list[str],
    test_words: list[str],
    tiny_folder: Path,
    tmp_path: Path,
) -> None:
    if importlib.util.find_spec(package.replace("-", "_")):
        pytest.skip(f"{package} is installed")
    folder = quantised(tiny_folder, tmp_path / "quantised", CONFIGS[package])
    words = [
        *fit_words,
        "--model.peft",
        "{r: 2}",
        "--model.model_name_or_path",
        folder,
        "--trainer.strategy",
        strategy,
    ]
    if package == "compressed-tensors":
        # It takes no adapter, so it is only tested.
        words = [*test_words, "--model.model_name_or_path", folder]
    done = command(*words, "--trainer.devices", "1")
    if distributed.is_initialized():
        distributed.destroy_process_group()
    assert done.code == 2
    assert f"{folder}: needs a package that is not installed" in done.error
    assert package in done.error.split("not installed")[1]
    assert not (tmp_path / "run" / "model").exists()
