"""vLLM behind the same call: prompts go in as token ids, answers come out as token ids."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.generation import Decoding

# The sizes that vLLM has adapter kernels for.
_LORA_RANKS = (8, 16, 32, 64, 128, 256)


def require_vllm() -> None:
    """Refuse to go on without vLLM.

    Raises:
        OneShotError: if it is not installed.
    """
    if importlib.util.find_spec("vllm") is None:
        raise OneShotError(
            "model.decoding.backend: vllm is not installed; run pip install 'oneshot-lit[vllm]', "
            "or choose transformers."
        )


def generation_config(folder: str) -> GenerationConfig | None:
    """Return the generation config of a model's folder or hub name; None if it has none."""
    path = Path(folder).expanduser()
    if path.is_dir() and not (path / "generation_config.json").is_file():
        return None
    return GenerationConfig.from_pretrained(path if path.is_dir() else folder)


@dataclass
class Engine:
    """A running vLLM, and the adapter that it answers with.

    Args:
        llm: The ``vllm.LLM``.
        lora: A ``LoRARequest``, or None without an adapter.
    """

    llm: Any
    lora: Any = None


def start_engine(
    folder: str, dtype: str, trust_remote_code: bool, options: dict[str, Any]
) -> Engine:
    """Start vLLM on a model folder, a hub name or a LoRA adapter's folder.

    Args:
        folder: What `model.model_name_or_path` names.
        dtype: Of the weights.
        trust_remote_code: Whether code from the hub may run.
        options: More arguments of ``vllm.LLM``, from `model.decoding.vllm`.

    Raises:
        OneShotError: for an adapter that vLLM cannot take, or arguments that it refuses.
    """
    from oneshot_lit.models import adapters

    require_vllm()
    vllm: Any = importlib.import_module("vllm")
    path = Path(folder).expanduser()
    arguments: dict[str, Any] = {"model": str(path) if path.is_dir() else folder}
    lora = None
    if adapters.is_adapter(path):
        rank = _lora_rank(adapters.read_adapter(path), folder)
        arguments = {"model": adapters.base_of(path)}
        arguments |= {"enable_lora": True, "max_lora_rank": rank}
        request = importlib.import_module("vllm.lora.request")
        lora = request.LoRARequest(path.name, 1, str(path))
    require_same_files(Path(arguments["model"]).expanduser())
    # Prompts and answers are token ids, so that the chat encoding is ours alone.
    arguments |= {"dtype": dtype, "skip_tokenizer_init": True}
    arguments |= {"trust_remote_code": trust_remote_code, **options}
    try:
        return Engine(vllm.LLM(**arguments), lora)
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OneShotError(f"model.decoding.vllm: vLLM refuses {folder}: {reason}.") from error


def require_same_files(folder: Path) -> None:
    """Refuse a folder from which vLLM would read other weights than `transformers`.

    vLLM takes the files of an index if there is one, and otherwise every safetensors file.

    Raises:
        OneShotError: naming a file that makes the difference.
    """
    from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

    from oneshot_lit.models.weight_files import weight_files

    if not folder.is_dir():
        return
    taken = {file.name for file in folder.glob("*.safetensors")}
    index = folder / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        taken &= set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    files = {file.name for file in weight_files(folder)}
    for name in sorted(taken - files):
        raise OneShotError(
            f"{folder}: vLLM reads {name}, too, which is not part of the model for transformers; "
            "move it away, or choose model.decoding.backend transformers."
        )
    for name in sorted(files - taken):
        raise OneShotError(
            f"{folder}: vLLM does not read {name}, which is the model for transformers; move "
            f"{SAFE_WEIGHTS_INDEX_NAME} away, or choose model.decoding.backend transformers."
        )


def _lora_rank(adapter: dict[str, Any], folder: str) -> int:
    """Return the smallest of vLLM's ranks that an adapter fits in."""
    plain = adapter.get("peft_type") == "LORA" and not any(
        adapter.get(key) for key in ("use_dora", "modules_to_save", "rank_pattern")
    )
    ranks = [size for size in _LORA_RANKS if size >= int(adapter.get("r") or 0)]
    if not plain or adapter.get("bias", "none") != "none" or not ranks:
        raise OneShotError(
            f"{folder}: vLLM takes plain LoRA adapters of rank {_LORA_RANKS[-1]} at most; write "
            "the whole model with --export.merge_adapter true, or set model.decoding.backend to "
            "transformers."
        )
    return ranks[0]


def answer(
    engine: Engine, prompts: Sequence[list[int]], stop_ids: Sequence[int], decoding: Decoding
) -> list[list[int]]:
    """Return the tokens of the answer to each prompt, in the order of the prompts.

    Args:
        engine: The running engine, which makes batches of its own.
        prompts: Their token ids.
        stop_ids: Tokens that end an answer.
        decoding: Length and sampling; without sampling the temperature is 0, which is greedy.
    """
    vllm: Any = importlib.import_module("vllm")
    parameters = vllm.SamplingParams(
        temperature=decoding.temperature if decoding.do_sample else 0.0,
        top_p=decoding.top_p if decoding.do_sample else 1.0,
        max_tokens=decoding.max_new_tokens,
        stop_token_ids=list(stop_ids),
        skip_special_tokens=True,
        detokenize=False,
    )
    outputs = engine.llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        parameters,
        use_tqdm=False,
        lora_request=engine.lora,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]
