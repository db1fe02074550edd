"""vLLM behind the same call: prompts go in as token ids, answers come out as token ids."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError

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
            "or choose auto."
        )


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
    """Refuse a folder of which vLLM reads other weights than `transformers`.

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
            "move it away, or choose model.decoding.backend auto."
        )
    for name in sorted(files - taken):
        raise OneShotError(
            f"{folder}: vLLM does not read {name}, which is the model for transformers; move "
            f"{SAFE_WEIGHTS_INDEX_NAME} away, or choose model.decoding.backend auto."
        )


def _lora_rank(adapter: dict[str, Any], folder: str) -> int:
    """Return the least size of vLLM's that an adapter fits in."""
    plain = adapter.get("peft_type") == "LORA" and not any(
        adapter.get(key) for key in ("use_dora", "modules_to_save", "rank_pattern")
    )
    ranks = [size for size in _LORA_RANKS if size >= int(adapter.get("r") or 0)]
    if not plain or adapter.get("bias", "none") != "none" or not ranks:
        raise OneShotError(
            f"{folder}: vLLM takes plain LoRA adapters of rank {_LORA_RANKS[-1]} at most; write "
            "the whole model with --export.merged true, or choose model.decoding.backend auto."
        )
    return ranks[0]


@dataclass
class VLLMAnswers:
    """Collect prompts and hand all of them to vLLM, which batches them itself.

    Args:
        engine: The running engine.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Longest answer.
        sampling: ``temperature`` and ``top_p``; a temperature of 0 is greedy.
    """

    engine: Engine
    stop_ids: Sequence[int]
    max_new_tokens: int
    sampling: dict[str, float]
    _waiting: dict[Hashable, list[int]] = field(default_factory=dict)

    def add(self, key: Hashable, prompt: list[int]) -> None:
        """Let a prompt wait for the others."""
        self._waiting[key] = prompt

    def run(self, to_the_end: bool = False) -> list[tuple[Hashable, list[int]]]:
        """Answer all prompts together at the end, and none before."""
        if not to_the_end or not self._waiting:
            return []
        waiting, self._waiting = self._waiting, {}
        vllm: Any = importlib.import_module("vllm")
        parameters = vllm.SamplingParams(
            **self.sampling,
            max_tokens=self.max_new_tokens,
            stop_token_ids=list(self.stop_ids),
            skip_special_tokens=True,
            detokenize=False,
        )
        prompts = [{"prompt_token_ids": prompt} for prompt in waiting.values()]
        outputs = self.engine.llm.generate(
            prompts, parameters, use_tqdm=False, lora_request=self.engine.lora
        )
        answers = [list(output.outputs[0].token_ids) for output in outputs]
        return list(zip(waiting, answers, strict=True))
