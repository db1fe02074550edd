"""`Answering`: how a module answers batches of prompts, with transformers or with vLLM."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn
from transformers import GenerationConfig

from oneshot_lit.errors import OneShotError
from oneshot_lit.models import vllm
from oneshot_lit.models.chat_format import answer_form, visible_text
from oneshot_lit.models.generation import Decoding, Output, answer_texts, generate_answers
from oneshot_lit.strategies.weights import runs_together


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
    _engine: vllm.Engine | None = None

    def generate(self, batch: dict[str, Tensor]) -> list[str]:
        """Answer a left-padded batch of prompts; returns the texts without special tokens."""
        if self.decoding.backend == "vllm":
            return self._generate_with_vllm(batch)
        return generate_answers(
            self.model,
            self.tokenizer,
            batch,
            stop_ids=self.stop_ids,
            decoding=self.decoding,
            together=runs_together(self.model),
        )

    def answer_batch(self, batch: dict[str, Tensor]) -> dict[int, Output]:
        """Return index in the prompt set -> answer.

        Rows that only fill up a batch, with a negative index, have no answer.
        """
        outputs = map(self._as_output, self.generate(batch))
        pairs = zip(batch["index"].tolist(), outputs, strict=True)
        return {index: output for index, output in pairs if index >= 0}

    def _as_output(self, text: str) -> Output:
        """Return an answer as the user sees it, also from a subclass's own `generate`."""
        if isinstance(text, Output):
            return text
        return Output(visible_text(text, answer_form(self.tokenizer)), text)

    def _configure_vllm(self) -> GenerationConfig | None:
        """Put an empty module in the model's place, as vLLM loads the weights itself.

        Returns:
            The model's generation config, which may name more stop tokens.
        """
        self._require_vllm_can_answer()
        self.model = nn.Module()
        assert self.model_name_or_path is not None
        return vllm.generation_config(self.model_name_or_path)

    def _require_vllm_can_answer(self) -> None:
        if self._trainer is not None and self.trainer.state.fn == "fit":
            raise OneShotError(
                "model.decoding.backend: vllm answers in test, validate and predict only; choose "
                "transformers for fit."
            )
        if self.model_name_or_path is None or self.peft is not None:
            raise OneShotError(
                "model.decoding.backend: vllm needs a model's folder in model.model_name_or_path, "
                "without model_config and peft; choose transformers."
            )
        if self._trainer is not None and self.trainer.world_size > 1:
            raise OneShotError(
                "model.decoding.backend: vllm runs in one process; set trainer.devices to 1 and "
                "give model.decoding.vllm a tensor_parallel_size."
            )
        vllm.require_vllm()

    def _generate_with_vllm(self, batch: dict[str, Tensor]) -> list[str]:
        if self._engine is None:
            assert self.model_name_or_path is not None
            self._engine = vllm.start_engine(
                self.model_name_or_path,
                self.dtype_name,
                self.trust_remote_code,
                self.decoding.vllm or {},
            )
        answers = vllm.answer(self._engine, _prompts(batch), self.stop_ids, self.decoding)
        return answer_texts(
            self.tokenizer,
            answers,
            stop_ids=self.stop_ids,
            max_new_tokens=self.decoding.max_new_tokens,
        )


def _prompts(batch: dict[str, Tensor]) -> list[list[int]]:
    """Return the token ids of each prompt without its padding on the left."""
    lengths = batch["attention_mask"].sum(-1).tolist()
    rows = batch["input_ids"].tolist()
    return [row[len(row) - length :] for row, length in zip(rows, lengths, strict=True)]
