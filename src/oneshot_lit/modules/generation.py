"""How answers are generated: the decoding options, and `generate` on a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from transformers import GenerationConfig

from oneshot_lit.errors import OneShotError


@dataclass
class Decoding:
    """How answers are generated; greedy unless `do_sample` is set.

    Args:
        max_new_tokens: Longest answer in tokens.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Softmax temperature when sampling.
        top_p: Nucleus mass when sampling.
        backend: ``refill`` lets waiting prompts take over the places of answers that have ended;
            ``static`` answers batch by batch with the model's `generate`; ``auto`` refills where
            the model allows it; ``vllm`` hands the model's folder to vLLM, for `test`, `validate`
            and `predict`. In float32 all give the same greedy answers.
        vllm: More arguments of ``vllm.LLM``, such as ``{gpu_memory_utilization: 0.8}``.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    backend: Literal["auto", "refill", "static", "vllm"] = "auto"
    vllm: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that `generate` would stumble over."""
        if self.max_new_tokens < 1:
            raise OneShotError(
                f"model.decoding.max_new_tokens must be at least 1, not {self.max_new_tokens}."
            )
        if self.temperature <= 0:
            raise OneShotError(
                f"model.decoding.temperature must be above 0, not {self.temperature}; for greedy "
                "decoding leave do_sample false."
            )
        if not 0 < self.top_p <= 1:
            raise OneShotError(f"model.decoding.top_p must be in (0, 1], not {self.top_p}.")
        if self.backend not in ("auto", "refill", "static", "vllm"):
            raise OneShotError(
                f"model.decoding.backend must be auto, refill, static or vllm, not {self.backend}."
            )
        if self.vllm and self.backend != "vllm":
            raise OneShotError(
                f"model.decoding.vllm: arguments of vLLM without backend vllm, but {self.backend}; "
                "drop them or choose it."
            )

    def generation_config(self, stop_ids: list[int], pad_id: int | None) -> GenerationConfig:
        """Return all that decides an answer; nothing comes from a checkpoint's own config."""
        sampling = {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=self.do_sample,
            eos_token_id=stop_ids,
            pad_token_id=pad_id,
            **(sampling if self.do_sample else {}),
        )


def generate_answers(
    model: Any,
    tokenizer: Any,
    batch: dict[str, Tensor],
    *,
    stop_ids: list[int],
    decoding: Decoding,
    together: bool = False,
) -> list[str]:
    """Answer a left-padded batch of prompts.

    Args:
        model: A Hugging Face causal language model, bare or with a PEFT adapter.
        tokenizer: Its tokenizer.
        batch: ``input_ids`` and ``attention_mask``.
        stop_ids: Tokens that end an answer; neither they nor what follows is part of it.
        decoding: How the answers are generated; the model's own generation config plays no part.
        together: Go on until all processes have their answers, as a sharded model needs.

    Returns:
        The texts without special tokens and outer white space, one a row.
    """
    # An adapter's `generate` hands over to the model inside, which holds the config.
    holder = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = holder.generation_config
    # `generate` fills what a given config leaves open from the checkpoint's own.
    holder.generation_config = GenerationConfig()
    try:
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=decoding.generation_config(stop_ids, tokenizer.pad_token_id),
            synced_gpus=together,
        )
    finally:
        holder.generation_config = own
    return answer_texts(
        tokenizer, output[:, batch["input_ids"].shape[1] :].tolist(), stop_ids=stop_ids
    )


def answer_texts(
    tokenizer: Any, answers: Sequence[list[int]], *, stop_ids: Sequence[int]
) -> list[str]:
    """Return the texts of answers up to their end, without special tokens and outer white space."""
    # An end of turn need not be a special token, which decoding would leave out.
    ended = [_until_stop(tokens, stop_ids) for tokens in answers]
    # Of no rows at all, the tokenizer makes one text.
    texts = tokenizer.batch_decode(ended, skip_special_tokens=True) if ended else []
    return [text.strip() for text in texts]


def _until_stop(tokens: list[int], stop_ids: Sequence[int]) -> list[int]:
    stops = [position for position, token in enumerate(tokens) if token in stop_ids]
    return tokens[: stops[0]] if stops else tokens
