"""PEFT adapters: make a new one, find the base of one in a folder, and merge it into its base."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.models.weight_files import ADAPTER_CONFIG, is_local

# Adapters of these kinds can be merged into the base: the tests train, write, load and merge each.
# Others cannot be merged, or need inputs, losses or calls of their own in a step.
MERGEABLE = frozenset(
    "ADAMSS BOFT C3A DEFT DELORA FOURIERFT FROD GLORA GRALORA HIRA HRA IA3 LN_TUNING LOHA LOKR "
    "LORA MISS OFT OSF PEANUT PSOFT PVERA RANDLORA ROAD SHIRA SUPERTUNING TINYLORA "
    "TRAINABLE_TOKENS UNILORA VBLORA VERA WAVEFT".split()
)
# Options of LoRA that cannot be merged.
_NOT_OF_LORA = ("alora_invocation_tokens", "arrow_config", "layer_replication")
# Initial values that need data, or that are random and change the base, which nobody could repeat.
_NOT_AS_START = ("corda", "eva", "lora_ga", "pissa_niter")
# These put tokens, or their keys and values, before the prompt: no weights hold what they learn.
PROMPTS = frozenset({"PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"})


def is_adapter(path: str | Path) -> bool:
    """Whether a local folder holds a PEFT adapter rather than a whole model."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def read_adapter(folder: Path) -> dict[str, Any]:
    """Return the config of an adapter's folder.

    Raises:
        OneShotError: if it is not a JSON mapping, or names no base model.
    """
    try:
        config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OneShotError(f"{folder}: {ADAPTER_CONFIG} is not JSON; fix it.") from error
    if not isinstance(config, dict) or not config.get("base_model_name_or_path"):
        raise OneShotError(f"{folder}: {ADAPTER_CONFIG} names no base model.")
    return config


def base_of(folder: Path) -> str:
    """Return the base model of an adapter: a hub name, or a folder.

    A relative path is looked up in the working folder, then within and beside the adapter.

    Raises:
        OneShotError: if it is a folder that is not there; see also `read_adapter`.
    """
    base = str(read_adapter(folder)["base_model_name_or_path"])
    path = Path(base).expanduser()
    for start in (Path(), folder, folder.resolve().parent):
        if (start / path).is_dir():
            return str(start / path)
    if is_local(base):
        raise OneShotError(
            f"{folder}: its base model {base} is neither in the working folder nor beside the "
            f"adapter; correct base_model_name_or_path in its {ADAPTER_CONFIG}."
        )
    return base


def takes_place(config: Mapping[str, Any]) -> int:
    """Return how many positions of the context an adapter takes for itself.

    Args:
        config: Of an adapter, or ``model.peft``.
    """
    learns_prompt = str(config.get("peft_type", "LORA")) in PROMPTS
    return int(config.get("num_virtual_tokens") or 0) if learns_prompt else 0


def add_adapter(model: Any, options: dict[str, Any]) -> Any:
    """Wrap a model with a new PEFT adapter (LoRA unless `peft_type` says otherwise).

    Raises:
        OneShotError: for a kind that could not be tested or exported afterwards, and for options
            that the kind does not know or refuses.
    """
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PeftType, get_peft_model

    arguments = dict(options)
    kind = str(arguments.pop("peft_type", "LORA"))
    known = [t.value for t in PeftType]
    if kind not in known:
        raise OneShotError(f"model.peft.peft_type '{kind}'{did_you_mean(kind, known)} is unknown.")
    if kind not in MERGEABLE | PROMPTS:
        raise OneShotError(
            f"model.peft.peft_type {kind}: not supported, because the trained adapter could not be "
            "tested or would differ from what was trained; use "
            f"{', '.join(sorted(MERGEABLE | PROMPTS))}."
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
        adapted = get_peft_model(model, config_class(**arguments))
    except (ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise OneShotError(f"model.peft: {reason.rstrip('.')}.") from error
    if arguments.get("lora_bias"):
        for name, module in adapted.named_modules():
            if hasattr(module, "lora_B") and getattr(module.get_base_layer(), "bias", None) is None:
                raise OneShotError(
                    f"model.peft.lora_bias: {name} has no bias to merge it into; drop lora_bias."
                )
    return adapted


def require_mergeable(options: Mapping[str, Any], key: str) -> None:
    """Refuse, before anything is trained, to merge an adapter that learns a prompt.

    Args:
        options: ``model.peft``.
        key: What asks for the merge.

    Raises:
        OneShotError: if it cannot be merged.
    """
    if (kind := str(options.get("peft_type", "LORA"))) in PROMPTS:
        raise OneShotError(
            f"{key}: an adapter of kind {kind} cannot be merged into its base, as no weights hold "
            "what it learns; write the adapter alone, or train another kind."
        )


def load_adapter(model: Any, folder: Path) -> Any:
    """Return a model with the adapter of a folder merged into it.

    An adapter that learns a prompt cannot be merged, and stays around the model, frozen.

    Args:
        model: The adapter's base model, whole.
        folder: The adapter's folder.

    Raises:
        OneShotError: if the adapter does not fit the model, or can neither be merged nor kept.
    """
    from peft import PeftModel

    try:
        adapted = PeftModel.from_pretrained(model, str(folder))
        if adapted.active_peft_config.peft_type in PROMPTS:
            return adapted
        return merge(adapted)
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


@contextmanager
def parameters_set(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Put tensors in the place of parameters for a while, also where several modules share one.

    Nothing that an engine has hooked into the modules runs meanwhile: it would look for its shards.

    Args:
        model: The module.
        weights: Name of a parameter -> its stand-in, on any device.
    """
    named = {name: nn.Parameter(value, False) for name, value in weights.items()}
    stand_ins = {id(model.get_parameter(name)): value for name, value in named.items()}
    names = ("_parameters", "_forward_pre_hooks", "_forward_hooks")
    modules = list(model.modules())
    kept = [{name: module.__dict__[name] for name in names} for module in modules]
    for module in modules:
        own = {n: stand_ins.get(id(p), p) for n, p in module._parameters.items()}
        hooks: dict[str, Any] = {name: OrderedDict() for name in names[1:]}
        module.__dict__.update(hooks, _parameters=own)
    try:
        yield
    finally:
        for module, before in zip(modules, kept, strict=True):
            module.__dict__.update(before)
