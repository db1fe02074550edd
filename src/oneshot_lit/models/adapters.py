"""PEFT adapters: make a new one, find the base of one in a folder, and merge it into its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.models.weight_files import ADAPTER_CONFIG, is_local

# Adapters of these kinds can be merged into the base: the tests train, write, load and merge each.
# Others cannot be merged (prompt tuning), need inputs, losses or calls of their own, or share
# weights between layers, which FSDP2 cannot shard (VBLORA).
MERGEABLE = frozenset(
    "ADAMSS BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR "
    "LORA MISS OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TRAINABLE_TOKENS VERA "
    "WAVEFT".split()
)
# Options of LoRA that cannot be merged.
_NOT_OF_LORA = ("alora_invocation_tokens", "arrow_config", "layer_replication", "lora_bias")
# Initial values that need data, or that are random and change the base, which nobody could repeat.
_NOT_AS_START = ("corda", "eva", "lora_ga", "pissa_niter")


def is_adapter(path: str | Path) -> bool:
    """Whether a local folder holds a PEFT adapter rather than a whole model."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def base_of(folder: Path) -> str:
    """Return the base model of an adapter: a hub name, a folder or a ``.gguf`` file.

    A relative path is looked up in the working folder, then within and beside the adapter.

    Raises:
        OneShotError: if it is a folder that is not there, or the adapter's config does not say.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
        base = str(config["base_model_name_or_path"] or "")
    except (OSError, ValueError) as error:
        raise OneShotError(f"{folder}: {ADAPTER_CONFIG} is not JSON; fix it.") from error
    except (KeyError, TypeError):
        base = ""
    if not base:
        raise OneShotError(f"{folder}: {ADAPTER_CONFIG} names no base model.")
    path = Path(base).expanduser()
    for start in (Path(), folder, folder.resolve().parent):
        if (start / path).is_dir() or (path.suffix == ".gguf" and (start / path).is_file()):
            return str(start / path)
    if is_local(base):
        raise OneShotError(
            f"{folder}: its base model {base} is neither in the working folder nor beside the "
            f"adapter; correct base_model_name_or_path in its {ADAPTER_CONFIG}."
        )
    return base


def add_adapter(model: Any, options: dict[str, Any]) -> Any:
    """Wrap a model with a new PEFT adapter (LoRA unless `peft_type` says otherwise).

    Its first values are drawn on the CPU, so that they are the same on every device.

    Raises:
        OneShotError: for a kind that could not be tested or exported afterwards, and for options
            that the kind does not know or refuses.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

    arguments = dict(options)
    kind = str(arguments.pop("peft_type", "LORA"))
    if kind not in MERGEABLE:
        raise OneShotError(
            f"model.peft.peft_type {kind}: not supported{did_you_mean(kind, MERGEABLE)}, or its "
            f"output would differ from what was trained; use {', '.join(sorted(MERGEABLE))}."
        )
    arguments.setdefault("task_type", "CAUSAL_LM")
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    fields = list(config_class.__dataclass_fields__)
    for name in arguments:
        if name not in fields:
            raise OneShotError(f"model.peft: unknown key '{name}'{did_you_mean(name, fields)}.")
    start = str(arguments.get("init_lora_weights", True))
    for name in _NOT_OF_LORA:
        if arguments.get(name):
            raise OneShotError(
                f"model.peft.{name}: not supported, as it cannot be merged; drop it."
            )
    if start.startswith(_NOT_AS_START):
        raise OneShotError(
            f"model.peft.init_lora_weights {start}: not supported, as its start cannot be made "
            "again from the base alone; give true, gaussian, orthogonal, pissa or olora."
        )
    try:
        with torch.device("cpu"):
            return get_peft_model(model, config_class(**arguments))
    except (ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise OneShotError(f"model.peft: {reason.rstrip('.')}.") from error


def load_adapter(model: Any, folder: Path) -> Any:
    """Return a model with the adapter of a folder merged into it.

    Args:
        model: The adapter's base model, whole.
        folder: The adapter's folder.

    Raises:
        OneShotError: if the adapter does not fit the model, or cannot be merged.
    """
    from peft import PeftModel

    try:
        # PEFT freezes the base; what is merged may be trained like any model.
        return merge(PeftModel.from_pretrained(model, str(folder))).requires_grad_(True)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RuntimeError,
        SafetensorError,
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise OneShotError(
            f"{folder}: the adapter does not load on {base_of(folder)} ({reason})."
        ) from error


def merge(model: Any) -> Any:
    """Return the base of a PEFT model with the adapter merged in; the PEFT model is used up by it.

    If the adapter adds to a matrix that head and embedding share, it is copied first: otherwise
    what one of them learned would end up in both.
    """
    base = model.get_base_model()
    _untie(base)
    merged = model.merge_and_unload()
    head, embedding = merged.get_output_embeddings(), merged.get_input_embeddings()
    if head is not None and head.weight.shape == embedding.weight.shape:
        tied = merged.config.get_text_config().tie_word_embeddings
        if tied and (head.weight == embedding.weight).all():
            head.weight = embedding.weight
    note_untied(merged)
    return merged


def note_untied(model: Any) -> None:
    """Record in the config if head and embedding are two separate matrices."""
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight:
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False


def _untie(model: nn.Module) -> None:
    """Give each module that ties a weight its own copy if an adapter adds to the weight."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    below: set[int] = set()
    for module in model.modules():
        if isinstance(module, BaseTunerLayer):
            below |= {id(p) for p in module.get_base_layer().parameters()}
        elif isinstance(module, AuxiliaryTrainingWrapper):
            below |= {id(p) for p in module.original_module.parameters()}
    seen: set[int] = set()
    for module in model.modules():
        for leaf, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in below & seen:
                own = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                setattr(module, leaf, own)
            seen.add(id(parameter))
