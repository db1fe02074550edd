"""vLLM behind the same call: prompts go in as token ids, answers come out as token ids."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.adapters import is_adapter
from oneshot_lit.models.generation import Decoding


def require_vllm(folder: str) -> None:
    """Refuse to go on without vLLM, or with a folder that it cannot take.

    Raises:
        OneShotError: saying what to do.
    """
    if importlib.util.find_spec("vllm") is None:
        raise OneShotError(
            "model.decoding.backend: vllm is not installed; run pip install 'oneshot-lit[vllm]', "
            "or choose transformers."
        )
    if is_adapter(folder):
        raise OneShotError(
            f"{folder}: model.decoding.backend vllm takes no adapter; write the whole model with "
            "--export.merge_adapter true, or choose transformers."
        )


def start_engine(folder: str, dtype: str, trust_remote_code: bool, options: dict[str, Any]) -> Any:
    """Return a running ``vllm.LLM``.

    Args:
        folder: What `model.model_name_or_path` names.
        dtype: Of the weights.
        trust_remote_code: Whether code from the hub may run.
        options: More arguments of ``vllm.LLM``, from `model.decoding.vllm`.

    Raises:
        OneShotError: for arguments that vLLM refuses.
    """
    vllm: Any = importlib.import_module("vllm")
    path = Path(folder).expanduser()
    # Prompts and answers are token ids, so that the chat encoding is ours alone.
    arguments = {
        "dtype": dtype,
        "skip_tokenizer_init": True,
        "trust_remote_code": trust_remote_code,
    }
    try:
        return vllm.LLM(model=str(path) if path.is_dir() else folder, **{**arguments, **options})
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise OneShotError(f"model.decoding.vllm: vLLM refuses {folder}: {reason}.") from error


def answer(
    engine: Any, prompts: Sequence[list[int]], stop_ids: Sequence[int], decoding: Decoding
) -> list[list[int]]:
    """Return the tokens of the answer to each prompt, in the order of the prompts.

    Args:
        engine: The running ``vllm.LLM``, which makes batches of its own.
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
    given = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = engine.generate(given, parameters, use_tqdm=False)
    return [list(output.outputs[0].token_ids) for output in outputs]
