"""`Answering`: how a module answers batches of prompts, with transformers or with vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn
from transformers import GenerationConfig

from oneshot_lit.errors import OneShotError
from oneshot_lit.models import vllm
from oneshot_lit.models.chat_format import answer_form, visible_text
from oneshot_lit.models.generation import Decoding, Output, answer_texts, generate_answers


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
    _engine: Any = None

    def generate(self, batch: dict[str, Tensor]) -> list[str]:
        """Answer a left-padded batch of prompts; returns the texts without special tokens."""
        if self.decoding.backend == "vllm":
            return self._generate_with_vllm(batch)
        return generate_answers(
            self.model, self.tokenizer, batch, stop_ids=self.stop_ids, decoding=self.decoding
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

        Raises:
            OneShotError: for what vLLM cannot do.
        """
        name, trainer = self.model_name_or_path, self._trainer
        fits = trainer is not None and (trainer.state.fn == "fit" or trainer.world_size > 1)
        if name is None or self.peft is not None or fits:
            raise OneShotError(
                "model.decoding.backend: vllm answers in test, validate and predict only, in one "
                "process (trainer.devices 1), for the model of model.model_name_or_path, without "
                "peft; choose transformers."
            )
        vllm.require_vllm(name)
        self.model = nn.Module()
        try:
            return GenerationConfig.from_pretrained(Path(name).expanduser())
        except OSError:
            return None

    def _generate_with_vllm(self, batch: dict[str, Tensor]) -> list[str]:
        if self._engine is None:
            assert self.model_name_or_path is not None
            self._engine = vllm.start_engine(
                self.model_name_or_path,
                self.dtype_name,
                self.trust_remote_code,
                self.decoding.vllm or {},
            )
        lengths = batch["attention_mask"].sum(-1).tolist()
        rows = zip(batch["input_ids"].tolist(), lengths, strict=True)
        # Without the padding on the left.
        prompts = [row[len(row) - length :] for row, length in rows]
        answers = vllm.answer(self._engine, prompts, self.stop_ids, self.decoding)
        return answer_texts(
            self.tokenizer,
            answers,
            stop_ids=self.stop_ids,
            max_new_tokens=self.decoding.max_new_tokens,
        )
