"""Load and build Hugging Face causal language models and tokenizers, with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.provenance import content_hash
from oneshot_lit.models.adapters import base_of, is_adapter, load_adapter, note_untied
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.weight_files import is_local, tensors_of, weight_files
from oneshot_lit.strategies.deepspeed import whole_models

MICROWORLD_TOKENIZER = "microworld"


def require_model_folder(path: str) -> Path:
    """Return a folder that holds a config and safetensors weights (or a PEFT adapter).

    A ``.gguf`` file is converted to one.

    Raises:
        OneShotError: if the folder, its config or its weights are missing, or the weights are
            damaged or pickles only.
    """
    folder = Path(model_folder(path)).expanduser()
    if not folder.exists():
        raise OneShotError(f"{path}: model folder not found; check model.model_name_or_path.")
    if not folder.is_dir():
        raise OneShotError(f"{path}: is a file; give the model's folder, or a .gguf file.")
    if not (folder / "config.json").is_file() and not is_adapter(folder):
        raise OneShotError(f"{path}: no config.json; give a Hugging Face model folder.")
    weight_files(folder)
    return folder


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """Load a tokenizer from a folder or the hub; ``microworld`` builds the embedded one.

    An adapter without a tokenizer has that of its base, and a ``.gguf`` file its own.
    """
    if name == MICROWORLD_TOKENIZER and not Path(name).exists():
        from oneshot_lit.microworld.tokenizer import build_tokenizer

        return build_tokenizer()
    from transformers import AutoTokenizer

    name = model_folder(name)
    if is_local(name) and not Path(name).expanduser().is_dir():
        raise OneShotError(f"{name}: tokenizer folder not found; check the path.")
    if is_adapter(name) and not any(Path(name).expanduser().glob("tokenizer*")):
        return load_tokenizer(base_of(Path(name).expanduser()), trust_remote_code)
    try:
        name = str(Path(name).expanduser()) if is_local(name) else name
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise OneShotError(
            f"{name}: no tokenizer could be loaded ({_first_line(error)})."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def resolve_dtype(name: str) -> torch.dtype:
    """Return the floating-point dtype of this name."""
    known = ("float32", "bfloat16", "float16", "float64")
    if name not in known:
        raise OneShotError(
            f"model.dtype '{name}'{did_you_mean(name, known)}: use {', '.join(known)}."
        )
    return getattr(torch, name)  # type: ignore[no-any-return]


def load_model(
    path: str,
    *,
    dtype: torch.dtype,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    auto_class: str = "AutoModelForCausalLM",
) -> Any:
    """Load a model from safetensors; a PEFT adapter of a causal LM is merged into its base model.

    `auto_class` names the class of transformers that knows the task.
    """
    import transformers
    from transformers.integrations import is_deepspeed_zero3_enabled

    folder = require_model_folder(path) if is_local(path) else None
    path = path if folder is None else str(folder)
    if folder is not None and is_adapter(folder):
        # Shards cannot be merged, so the model is loaded whole; a strategy may shard the result.
        with whole_models():
            model = load_model(
                base_of(folder),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                attn_implementation=attn_implementation,
            )
            return load_adapter(model, folder)
    extra: dict[str, Any] = {}
    if attn_implementation is not None:
        extra["attn_implementation"] = attn_implementation
    try:
        # Under ZeRO-3 `transformers` compares tied matrices by parameters that hold nothing.
        sharded = folder is not None and is_deepspeed_zero3_enabled()
        if sharded and _tied_by_config_alone(folder, trust_remote_code):
            extra["tie_word_embeddings"] = False
        model, report = getattr(transformers, auto_class).from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **extra,
        )
    except ImportError as error:
        # What a quantised folder or an attention kernel needs; the error says how to install it.
        raise OneShotError(
            f"{path}: needs a package that is not installed ({' '.join(str(error).split())})."
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise OneShotError(f"{path}: no model could be loaded ({_first_line(error)}).") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise OneShotError(
            f"{path}: the weights lack {len(missing)} tensors of the model ({missing[0]}, ...); "
            "they would be random. Give a complete folder."
        )
    note_untied(model)
    return model


def _tied_by_config_alone(folder: Any, trust_remote_code: bool) -> bool:
    """Whether the files hold two different matrices that the config calls tied."""
    from transformers import AutoConfig, AutoModelForCausalLM

    code = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(folder, **code)
    with whole_models(), torch.device("meta"):
        tied = AutoModelForCausalLM.from_config(config, **code).all_tied_weights_keys
    files = tensors_of(weight_files(folder))

    def tensor(name: str) -> torch.Tensor:
        with safe_open(files[name], framework="pt") as opened:
            return opened.get_tensor(name)  # type: ignore[no-any-return]

    pairs = [pair for pair in tied.items() if set(pair) <= set(files)]
    return not all(torch.equal(tensor(a), tensor(b)) for a, b in pairs)


def build_model(config: dict[str, Any], tokenizer: Any, dtype: torch.dtype) -> Any:
    """Build a randomly initialised causal LM from an architecture description.

    It is drawn whole and on the CPU, so that it has the same weights under every strategy.

    Args:
        config: Arguments of the model's Hugging Face config, with ``model_type``; vocabulary size
            and special token ids are the tokenizer's.
        tokenizer: Decides the vocabulary.
        dtype: Dtype of the weights.
    """
    from transformers import AutoModelForCausalLM

    described = architecture(config, tokenizer)
    try:
        with whole_models(), torch.device("cpu"):
            return AutoModelForCausalLM.from_config(described, dtype=dtype)
    except (ValueError, TypeError) as error:
        raise OneShotError(f"model.model_config: {_first_line(error)}.") from error


def architecture(config: dict[str, Any], tokenizer: Any) -> Any:
    """Return the Hugging Face config of a new model; arguments as for `build_model`."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    options = dict(config)
    kind = options.pop("model_type", None)
    if kind not in CONFIG_MAPPING_NAMES:
        hint = did_you_mean(str(kind), CONFIG_MAPPING_NAMES)
        raise OneShotError(f"model.model_config.model_type '{kind}' is unknown{hint}.")
    options.setdefault("vocab_size", len(tokenizer))
    options.setdefault("bos_token_id", tokenizer.bos_token_id)
    options.setdefault("eos_token_id", tokenizer.eos_token_id)
    options.setdefault("pad_token_id", tokenizer.pad_token_id)
    try:
        return AutoConfig.for_model(kind, **options)
    except (ValueError, TypeError) as error:
        raise OneShotError(f"model.model_config: {_first_line(error)}.") from error


def local_folder(name: str, trust_remote_code: bool = False) -> Path:
    """Return the folder of a model; one of the hub is downloaded, without any pickles."""
    if is_local(name):
        return require_model_folder(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        wanted = ["*.json", "*.safetensors", "*.jinja", *(["*.py"] if trust_remote_code else [])]
        folder = snapshot_download(name, allow_patterns=wanted)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise OneShotError(f"{name}: no model could be loaded ({_first_line(error)}).") from error
    return require_model_folder(folder)


def model_hash(folder: Path) -> str:
    """Return a hash of a model's files; those of an adapter's base belong to it."""
    own = content_hash(folder)
    return own + model_hash(local_folder(base_of(folder))) if is_adapter(folder) else own
