"""Quantised folders: no optimiser trains their weights, and some take an adapter."""

from __future__ import annotations

from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.context import read_config

# Methods that transformers calls trainable and for whose layers PEFT has LoRA of its own.
_TAKE_ADAPTERS = ("aqlm", "awq", "bitsandbytes", "eetq", "gptq", "hqq", "torchao")
# How transformers gives the weights back, where it does.
_DEQUANTISED = {
    "bitsandbytes": "AutoModelForCausalLM.from_pretrained(folder).dequantize()",
    "compressed-tensors": "quantization_config=CompressedTensorsConfig(dequantize=True)",
    "fp8": "quantization_config=FineGrainedFP8Config(dequantize=True)",
    "mxfp4": "quantization_config=Mxfp4Config(dequantize=True)",
}


def quantisation(config: Any) -> str | None:
    """Return the quantisation method that a Hugging Face config names; None without one."""
    given = getattr(config, "quantization_config", None)
    if given is None:
        return None
    options = given if isinstance(given, dict) else given.to_dict()
    method = options.get("quant_method")
    # Folders of an early bitsandbytes do not name it.
    return "bitsandbytes" if method is None else str(getattr(method, "value", method))


def require_trainable(name: str, adapter: bool, trust_remote_code: bool = False) -> None:
    """Refuse to train a model whose weights are quantised, unless an adapter can be.

    Only the config is read.

    Args:
        name: Folder or hub name of the model.
        adapter: Whether an adapter is to be trained, and the weights stay as they are.
        trust_remote_code: As `read_config` takes it.

    Raises:
        OneShotError: saying how to get weights that can be trained.
    """
    method = quantisation(read_config(name, None, None, trust_remote_code))
    if method is None or (adapter and method in _TAKE_ADAPTERS):
        return
    ways = ["give the original weights"]
    if method in _DEQUANTISED:
        ways.append(
            f"write a folder of what these stand for with transformers ({_DEQUANTISED[method]}, "
            "then save_pretrained)"
        )
    if method in _TAKE_ADAPTERS:
        ways.append("train an adapter on them: fit with --model.peft '{r: 16}'")
    what = "and takes no adapter" if adapter else "and cannot be changed"
    raise OneShotError(f"{name}: is quantised ({method}) {what}; {', or '.join(ways)}.")


def require_trainable_layers(name: str, model: Any) -> None:
    """Refuse to train an adapter on a loaded model that its quantiser calls not trainable.

    Raises:
        OneShotError: naming the quantiser.
    """
    quantiser = getattr(model, "hf_quantizer", None)
    if quantiser is not None and not quantiser.is_trainable:
        raise OneShotError(
            f"{name}: transformers cannot train on this quantisation "
            f"({type(quantiser).__name__}); give the original weights."
        )
