"""How a module answers prompts: batch by batch, or as a stream that runs on over the batches."""

from __future__ import annotations

from collections.abc import Hashable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from transformers import GenerationConfig

from oneshot_lit.errors import OneShotError
from oneshot_lit.models.chat_format import answer_form, visible_text
from oneshot_lit.models.decoding import vllm
from oneshot_lit.models.decoding.backends import AnswerStream, obstacle
from oneshot_lit.models.decoding.slots import Slots, open_slots
from oneshot_lit.models.generation import (
    Decoding,
    Output,
    answer_texts,
    generate_answers,
    text_end,
)
from oneshot_lit.strategies.weights import runs_together

# Number of the prompt set and of the prompt in it.
Key = tuple[int, int]


class Answering:
    """The part of `LanguageModelModule` that turns prompts into answers."""

    model: Any
    model_name_or_path: str | None
    dtype_name: str
    trust_remote_code: bool
    peft: dict[str, Any] | None
    tokenizer: Any
    stop_ids: list[int]
    decoding: Decoding
    trainer: Trainer
    _trainer: Any
    _stream: AnswerStream | None = None
    _engine: vllm.Engine | None = None

    def generate(self, batch: dict[str, Tensor]) -> list[str]:
        """Answer a left-padded batch of prompts; returns the texts without special tokens."""
        stream = self._new_stream(len(batch["input_ids"]))
        if stream is not None:
            for row, prompt in enumerate(_prompts(batch)):
                stream.add(row, prompt)
            answers = dict(self._texts(stream.run(to_the_end=True)))
            return [answers[row] for row in range(len(answers))]
        return generate_answers(
            self.model,
            self.tokenizer,
            batch,
            stop_ids=self.stop_ids,
            decoding=self.decoding,
            together=runs_together(self.model),
        )

    def _start_answering(self, loaders: list[Any]) -> None:
        """Begin a stream over all prompt sets, unless answers come batch by batch."""
        # Whatever an interrupted epoch has left is forgotten with the old one.
        self._stream = None
        # A class of the user's, or a test, may answer in its own way.
        if getattr(self.generate, "__func__", None) is Answering.generate:
            # All sets share the slots, also one that alone would not fill them.
            self._stream = self._new_stream(max((_batch_size(each) for each in loaders), default=1))

    def _answers(self, batch: dict[str, Tensor], dataloader_idx: int) -> list[tuple[Any, Any]]:
        """Take a batch in; returns the `Key` and text of each answer that is ready by now.

        What only fills up a batch, with a negative index, has no answer.
        """
        keys: list[Key] = [(dataloader_idx, index) for index in batch["index"].tolist()]
        if self._stream is None:
            answered = zip(keys, map(self._as_output, self.generate(batch)), strict=True)
            return [(key, text) for key, text in answered if key[1] >= 0]
        if isinstance(self._stream, Slots):
            # A loader need not tell its batch size.
            self._stream.slots = max(self._stream.slots, len(keys))
        for key, prompt in zip(keys, _prompts(batch), strict=True):
            if key[1] >= 0:
                self._stream.add(key, prompt)
        return self._texts(self._stream.run())

    def _as_output(self, text: str) -> Output:
        """Return an answer as the user sees it, whoever wrote the `generate` that gives it."""
        if isinstance(text, Output):
            return text
        return Output(visible_text(text, answer_form(self.tokenizer)), text)

    def _last_answers(self) -> list[tuple[Any, Any]]:
        """Return the answers that no batch has brought."""
        if self._stream is None:
            return []
        # In the precision in which the batches were answered.
        plugin = getattr(self.trainer, "precision_plugin", None)
        with torch.no_grad(), plugin.val_step_context() if plugin else nullcontext():
            return self._texts(self._stream.run(to_the_end=True))

    def _texts(self, answers: list[tuple[Hashable, list[int]]]) -> list[tuple[Any, Any]]:
        tokens = [tokens for _, tokens in answers]
        texts = answer_texts(
            self.tokenizer,
            tokens,
            stop_ids=self.stop_ids,
            max_new_tokens=self.decoding.max_new_tokens,
        )
        return [(key, text) for (key, _), text in zip(answers, texts, strict=True)]

    def _new_stream(self, slots: int) -> AnswerStream | None:
        """Return where prompts are answered in a stream, or None if only in batches."""
        decoding = self.decoding
        if decoding.backend == "static":
            return None
        if decoding.backend == "vllm":
            return self._vllm_stream()
        reason = obstacle(self.model, decoding.do_sample)
        if reason is None:
            pad_id = self.tokenizer.pad_token_id
            return open_slots(
                self.model,
                slots,
                self.stop_ids,
                decoding.max_new_tokens,
                pad_id,
                ended=text_end(self.tokenizer),
            )
        if decoding.backend == "refill":
            raise OneShotError(f"model.decoding.backend refill: {reason}; choose auto.")
        return None

    # -------------------------------------------------------------------- vLLM

    def _configure_vllm(self) -> GenerationConfig | None:
        """Stand in for the model, which vLLM loads itself; returns its generation config."""
        name = self.model_name_or_path
        if self._trainer is not None and self.trainer.state.fn == "fit":
            raise OneShotError(
                "model.decoding.backend: vllm answers in test, validate and predict only; choose "
                "auto for fit."
            )
        if name is None or self.peft is not None:
            raise OneShotError(
                "model.decoding.backend: vllm needs a model's folder in model.model_name_or_path, "
                "without model_config and peft; choose auto."
            )
        if self._trainer is not None and self.trainer.world_size > 1:
            raise OneShotError(
                "model.decoding.backend: vllm runs in one process; set trainer.devices to 1 and "
                "give model.decoding.vllm a tensor_parallel_size."
            )
        vllm.require_vllm()
        self.model = nn.Module()
        path = Path(name).expanduser()
        if path.is_dir() and not (path / "generation_config.json").is_file():
            return None
        return GenerationConfig.from_pretrained(path if path.is_dir() else name)

    def _vllm_stream(self) -> AnswerStream:
        decoding = self.decoding
        if self._engine is None:
            assert self.model_name_or_path is not None
            self._engine = vllm.start_engine(
                self.model_name_or_path,
                self.dtype_name,
                self.trust_remote_code,
                decoding.vllm or {},
            )
        sampling = {"temperature": 0.0, "top_p": 1.0}
        if decoding.do_sample:
            sampling = {"temperature": decoding.temperature, "top_p": decoding.top_p}
        return vllm.VLLMAnswers(self._engine, self.stop_ids, decoding.max_new_tokens, sampling)


def _batch_size(loader: Any) -> int:
    # For `predict`, Lightning moves it into the batch sampler.
    sampler = getattr(loader, "batch_sampler", None)
    sizes = (getattr(place, "batch_size", None) for place in (loader, sampler))
    return next((size for size in sizes if size), 1)


def _prompts(batch: dict[str, Tensor]) -> list[list[int]]:
    """Return the token ids of each prompt without its padding on the left."""
    lengths = batch["attention_mask"].sum(-1).tolist()
    rows = batch["input_ids"].tolist()
    return [row[len(row) - length :] for row, length in zip(rows, lengths, strict=True)]
