"""How answers are generated: the decoding options, and `generate` on a batch of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, takewhile
from typing import Any

from torch import Tensor
from transformers import GenerationConfig

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.chat_format import AnswerForm, answer_form, visible_text
from oneshot_lit.models.greedy_batch import greedy_tokens, rows_can_leave
from oneshot_lit.models.shared_prefix import prefix_cache
from oneshot_lit.strategies.weights import runs_together


@dataclass
class Decoding:
    """How answers are generated: greedily unless `do_sample` is set.

    Args:
        max_new_tokens: Longest answer in tokens.
        do_sample: Sample instead of taking the likeliest token.
        temperature: Softmax temperature when sampling.
        top_p: Nucleus mass when sampling.
        backend: ``transformers`` answers with the model's `generate`; ``vllm`` hands the model's
            folder to vLLM, for `test`, `validate` and `predict`. Prompts are sorted by length and
            answered in batches of `data.eval_batch_size`.
        vllm: More arguments of ``vllm.LLM``, such as ``{gpu_memory_utilization: 0.8}``.
    """

    max_new_tokens: int = 64
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    backend: str = "transformers"
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
        if self.backend not in ("transformers", "vllm"):
            raise OneShotError(
                f"model.decoding.backend must be transformers or vllm, not {self.backend}."
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


class Output(str):
    """The text of an answer that the user sees, without special tokens and outer white space.

    Attributes:
        raw: The same with the thoughts that the template keeps from the user.
        cut: Whether generation ended at `max_new_tokens` and not at an end of turn.
    """

    raw: str
    cut: bool

    def __new__(cls, text: str = "", raw: str | None = None, cut: bool = False) -> Output:
        """Make an output of its visible text."""
        output = super().__new__(cls, text)
        output.raw, output.cut = text if raw is None else raw, cut
        return output


def generate_answers(
    model: Any,
    tokenizer: Any,
    batch: dict[str, Tensor],
    *,
    stop_ids: list[int],
    decoding: Decoding,
    form: AnswerForm | None = None,
) -> list[str]:
    """Answer a left-padded batch of prompts.

    Args:
        model: A Hugging Face causal language model, bare or with a PEFT adapter.
        tokenizer: Its tokenizer.
        batch: ``input_ids`` and ``attention_mask``.
        stop_ids: Tokens that end an answer; neither they nor what follows is part of it.
        decoding: How the answers are generated; the model's own generation config plays no part.
        form: How answers end and what of them is hidden; by the tokenizer's template if not given.

    Returns:
        The texts that the user sees, each an `Output`, one a row.
    """
    form = answer_form(tokenizer) if form is None else form
    at_text = {"stop_strings": form.end_text, "tokenizer": tokenizer} if form.end_text else {}
    tokens = generate_tokens(model, batch, stop_ids, decoding, tokenizer.pad_token_id, **at_text)
    return answer_texts(
        tokenizer,
        tokens,
        stop_ids=stop_ids,
        max_new_tokens=decoding.max_new_tokens,
        form=form,
    )


def generate_tokens(
    model: Any,
    batch: dict[str, Tensor],
    stop_ids: list[int],
    decoding: Decoding,
    pad_id: int | None,
    **options: Any,
) -> list[list[int]]:
    """Return the tokens that follow each prompt of a left-padded batch, with any padding.

    What all prompts begin with is read once (`prefix_cache`). Greedy answers come from
    `greedy_tokens`, which lets rows leave; sampled ones, those that end with a text, and those of
    sharded models from the model's `generate`.

    Args:
        model: As in `generate_answers`, which also explains the other arguments.
        batch: ``input_ids`` and ``attention_mask``.
        stop_ids: Tokens that end an answer.
        decoding: How the answers are generated.
        pad_id: What follows an answer that ends before the others.
        options: More arguments of the model's `generate`.
    """
    cache = prefix_cache(model, batch["input_ids"], batch["attention_mask"])
    # An adapter's `generate` hands over to the model inside, which holds the config.
    holder = model.get_base_model() if hasattr(model, "get_base_model") else model
    own = holder.generation_config
    # `generate` fills what a given config leaves open from the checkpoint's own.
    holder.generation_config = GenerationConfig()
    config, together = decoding.generation_config(stop_ids, pad_id), runs_together(model)
    try:
        if not (decoding.do_sample or together or options) and rows_can_leave(model):
            return greedy_tokens(model, batch, config, stop_ids, cache)
        output = model.generate(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            generation_config=config,
            # All processes of a sharded model go on until the last one is done.
            synced_gpus=together,
            **({} if cache is None else {"past_key_values": cache}),
            **options,
        )
    finally:
        holder.generation_config = own
    return output[:, batch["input_ids"].shape[1] :].tolist()  # type: ignore[no-any-return]


def answer_texts(
    tokenizer: Any,
    answers: Sequence[list[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int | None = None,
    form: AnswerForm | None = None,
) -> list[str]:
    """Return the texts of answers up to their end, as the user sees them: each an `Output`.

    Args:
        tokenizer: Decodes them.
        answers: Their tokens, which may go on after the end.
        stop_ids: Tokens that end an answer.
        max_new_tokens: The limit on an answer's tokens, if known.
        form: How answers end and what of them is hidden; by the tokenizer's template if not given.
    """
    form = answer_form(tokenizer) if form is None else form
    return [_answer(tokenizer, tokens, stop_ids, max_new_tokens, form) for tokens in answers]


def _answer(
    tokenizer: Any,
    tokens: list[int],
    stop_ids: Sequence[int],
    max_new_tokens: int | None,
    form: AnswerForm,
) -> Output:
    # An end of turn need not be a special token, which decoding would leave out.
    own = list(takewhile(lambda token: token not in stop_ids, tokens))
    text = _decoded(tokenizer, own, form)
    ended = len(own) < len(tokens)
    if form.end_text is not None:
        text, mark, _ = text.partition(form.end_text)
        ended = ended or bool(mark)
    cut = not ended and max_new_tokens is not None and len(tokens) >= max_new_tokens
    return Output(visible_text(text, form, form.thinking), text.strip(), cut)


def _decoded(tokenizer: Any, tokens: list[int], form: AnswerForm) -> str:
    """Return the text of tokens without special ones, but with the marks of thoughts."""
    marks = {mark for pair in form.thoughts for mark in pair}
    added = tokenizer.added_tokens_decoder.items() if marks else ()
    shown = {number: token.content for number, token in added if token.content in marks}
    parts = [
        shown.get(key) or tokenizer.decode(list(part), skip_special_tokens=True)
        for key, part in groupby(tokens, lambda token: token if token in shown else None)
    ]
    return "".join(parts)
