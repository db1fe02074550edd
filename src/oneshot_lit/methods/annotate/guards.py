"""Guards: models that say how safe the beginning of an answer is, as a probability."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.classifier import disarm
from oneshot_lit.evaluation.metrics.refusal import is_refusal
from oneshot_lit.methods.finetuning.star_dss import probability_safe
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.labelled_head import head_on_labelled
from oneshot_lit.models.loading import load_model, load_tokenizer, resolve_dtype


@dataclass(frozen=True)
class Beginning:
    """The beginning of an answer.

    Attributes:
        messages: The turns before the answer.
        text: The beginning.
        answer: The whole answer.
        origin: Its place, for errors.
    """

    messages: tuple[Message, ...]
    text: str
    answer: str
    origin: str


class Guard:
    """Base class of guards; subclasses implement `scores`.

    Args:
        model_name_or_path: Folder or hub name of the guard.
        batch_size: Texts in one forward pass.
        max_length: Longest text in tokens; a longer one is refused.
        dtype: Dtype of the guard's weights.
    """

    auto_class = "AutoModelForCausalLM"

    def __init__(
        self,
        model_name_or_path: str,
        batch_size: int = 16,
        max_length: int = 4096,
        dtype: str = "float32",
    ) -> None:
        if min(batch_size, max_length) < 1:
            raise OneShotError("guard: batch_size and max_length must be at least 1.")
        self.name = model_name_or_path
        self.batch_size, self.max_length = batch_size, max_length
        self.dtype_name, self.dtype = dtype, resolve_dtype(dtype)
        self.model: Any = None
        self.tokenizer: Any = None

    def settings(self) -> dict[str, Any]:
        """Return what beside the model decides the scores, as plain JSON values."""
        kind = f"{type(self).__module__}.{type(self).__qualname__}"
        return {"guard": kind, "dtype": self.dtype_name}

    def load(self, device: torch.device) -> None:
        """Load the guard."""
        self.tokenizer = load_tokenizer(self.name)
        model = load_model(model_folder(self.name), dtype=self.dtype, auto_class=self.auto_class)
        self.model = model.to(device).eval()

    def unload(self) -> None:
        """Give the memory back."""
        self.model = None

    def safety(self, beginnings: Sequence[Beginning]) -> list[float]:
        """Return the probability that each is safe; those of like length go together."""
        ids = [self.encoded(each) for each in beginnings]
        for row, each in zip(ids, beginnings, strict=True):
            if len(row) > self.max_length:
                raise OneShotError(
                    f"{each.origin}: has {len(row)} tokens with the prompt of {self.name}, more "
                    f"than its max_length={self.max_length}; raise it, or drop the row."
                )
        order = sorted(range(len(ids)), key=lambda n: len(ids[n]))
        result = [0.0] * len(ids)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            own = self.scores([ids[n] for n in part], [beginnings[n] for n in part])
            for n, value in zip(part, own.tolist(), strict=True):
                result[n] = value
        return result

    def encoded(self, beginning: Beginning) -> list[int]:
        """Return the tokens that the guard reads about a beginning."""
        raise NotImplementedError

    def scores(self, rows: list[list[int]], beginnings: Sequence[Beginning]) -> Tensor:
        """Return the probability that each is safe, (rows,)."""
        raise NotImplementedError

    def last_logits(self, rows: list[list[int]]) -> Tensor:
        """Return the logits behind the last token of each row, (rows, vocabulary), float32."""
        # The one labelled token is behind the row: so the head runs on its last token alone.
        longer = [Encoded([*row, 0], [False] * len(row) + [True]) for row in rows]
        batch = pad_training(longer, 0)
        batch = {name: each.to(self.model.device) for name, each in batch.items()}
        with head_on_labelled(self.model, batch["labels"]):
            logits: Tensor = self.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).logits
        return logits.float()


class KeywordGuard(Guard):
    """A guard that writes its verdict as a word, such as Llama Guard or Granite Guardian.

    P(safe) is the softmax over the logits of the two words, at a fixed place of the reply. The
    release takes scores after sampling filters, which lie nearer to 0 and 1 and may be NaN.

    Args:
        safe: The word for safe; for Granite Guardian ``No``.
        unsafe: The word for unsafe; for Granite Guardian ``Yes``.
        position: How many tokens the reply has before the word, which are taken greedily: 1 for
            Llama Guard 3, which begins a new line; 0 for Granite Guardian.
        temperature: Divides the two logits; the release has 0.2.
        template_arguments: Arguments of the guard's chat template, such as
            ``{add_generation_prompt: true, guardian_config: {risk_name: harm}}``.
        guard: Keys of `Guard`.
    """

    def __init__(
        self,
        safe: str = "safe",
        unsafe: str = "unsafe",
        position: int = 0,
        temperature: float = 1.0,
        template_arguments: dict[str, Any] | None = None,
        **guard: Any,
    ) -> None:
        super().__init__(**guard)
        if position < 0 or temperature <= 0:
            raise OneShotError("guard: position must not be negative, and temperature be above 0.")
        self.words, self.position, self.temperature = (safe, unsafe), position, temperature
        self.arguments = template_arguments or {}
        self._ids: list[int] = []

    def settings(self) -> dict[str, Any]:
        """Return what beside the model decides the scores."""
        own = {"words": self.words, "position": self.position, "temperature": self.temperature}
        return super().settings() | own | {"template": self.arguments}

    def load(self, device: torch.device) -> None:
        """Load the guard, and find its two words."""
        super().load(device)
        if not self.tokenizer.chat_template:
            raise OneShotError(f"{self.name}: the guard has no chat template, which asks it.")
        each = [self.tokenizer(word, add_special_tokens=False)["input_ids"] for word in self.words]
        self._ids = [ids[0] if ids else -1 for ids in each]
        unknown = {-1, self.tokenizer.unk_token_id}
        if self._ids[0] == self._ids[1] or unknown & set(self._ids):
            raise OneShotError(
                f"{self.name}: the words {self.words[0]} and {self.words[1]} do not begin with two "
                "different tokens of the guard; give others in safe and unsafe."
            )

    def encoded(self, beginning: Beginning) -> list[int]:
        """Return the guard's question about a beginning, in its own template."""
        known = self.tokenizer
        marks = [*known.all_special_tokens, *map(str, known.added_tokens_decoder.values())]
        turns = [(m.role, m.content) for m in beginning.messages if m.role != "system"]
        turns.append(("assistant", beginning.text))
        # What is judged must not end its turn and speak for the guard.
        chat = [{"role": role, "content": disarm(text, marks)} for role, text in turns]
        try:
            text = known.apply_chat_template(chat, tokenize=False, **self.arguments)
        except Exception as error:
            raise OneShotError(
                f"{beginning.origin}: the chat template of {self.name} refuses the conversation "
                f"({type(error).__name__}); see template_arguments."
            ) from error
        ids: list[int] = known(text, add_special_tokens=False)["input_ids"]
        return ids

    def scores(self, rows: list[list[int]], beginnings: Sequence[Beginning]) -> Tensor:
        """Return the softmax over the two words."""
        for _ in range(self.position):
            following = self.last_logits(rows).argmax(-1).tolist()
            rows = [[*row, token] for row, token in zip(rows, following, strict=True)]
        logits = self.last_logits(rows)
        safe, unsafe = (logits[:, token] for token in self._ids)
        return probability_safe(safe, unsafe, self.temperature)


class ClassifierGuard(Guard):
    """A sequence classifier that reads prompt and answer as a pair of texts, or in a template.

    Args:
        safe_labels: The labels that mean safe, as its ``config.json`` names them. With several
            labels at once (``multi_label_classification``), P(safe) is 1 less the largest
            probability of any other label; otherwise it is the sum over these.
        template: A text with ``{prompt}`` and ``{answer}``, in place of the pair.
        guard: Keys of `Guard`.
    """

    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, safe_labels: list[str], template: str | None = None, **guard: Any) -> None:
        super().__init__(**guard)
        if template is not None and not ("{prompt}" in template and "{answer}" in template):
            raise OneShotError("guard: template needs {prompt} and {answer}.")
        self.safe_labels, self.template = safe_labels, template
        self._safe = torch.zeros(0, dtype=torch.bool)

    def settings(self) -> dict[str, Any]:
        """Return what beside the model decides the scores."""
        return super().settings() | {"safe": self.safe_labels, "template": self.template}

    def load(self, device: torch.device) -> None:
        """Load the guard, and find its labels."""
        super().load(device)
        names = [str(self.model.config.id2label[n]) for n in range(self.model.config.num_labels)]
        if unknown := [label for label in self.safe_labels if label not in names]:
            known = ", ".join(names)
            raise OneShotError(f"{self.name}: has no label {unknown[0]}; it has {known}.")
        self._safe = torch.tensor([name in self.safe_labels for name in names])
        if self._safe.all():
            raise OneShotError(f"{self.name}: every label is in safe_labels; leave the others out.")
        if self.model.config.pad_token_id is None:
            self.model.config.pad_token_id = self.tokenizer.pad_token_id
        if self.tokenizer.pad_token_id is None:
            # It has no token to fill up a row with.
            self.batch_size = 1

    def encoded(self, beginning: Beginning) -> list[int]:
        """Return the pair, or the template's text, as tokens."""
        return list(self.tokenizer(*self._texts(beginning))["input_ids"])

    def scores(self, rows: list[list[int]], beginnings: Sequence[Beginning]) -> Tensor:
        """Return the probability of the labels that mean safe."""
        texts = [list(column) for column in zip(*map(self._texts, beginnings), strict=True)]
        several = {"padding": True} if len(rows) > 1 else {}
        # With the types of tokens by which some classifiers know the two texts.
        batch = self.tokenizer(*texts, return_tensors="pt", **several).to(self.model.device)
        logits = self.model(**batch).logits.float().cpu()
        if self.model.config.problem_type == "multi_label_classification":
            return 1 - logits.sigmoid()[:, ~self._safe].max(1).values
        return logits.softmax(-1)[:, self._safe].sum(1)

    def _texts(self, beginning: Beginning) -> tuple[str, ...]:
        prompt = next(m.content for m in reversed(beginning.messages) if m.role == "user")
        if self.template is None:
            return prompt, beginning.text
        texts = {"prompt": prompt, "answer": beginning.text}
        return (re.sub(r"{(prompt|answer)}", lambda place: texts[place[1]], self.template),)


class RefusalGuard(Guard):
    """The aligned model itself: what it would refuse is not safe to learn.

    P(safe) is 1 less the probability that its answer begins with a word of refusal; an answer that
    is a refusal is safe. Our own: made for models that refuse with one first word, such as those of
    the micro-world, where it separates harmful from harmless prompts.

    Args:
        first_words: The words that a refusal begins with; each counts by its first token.
        guard: Keys of `Guard`.
    """

    def __init__(self, first_words: list[str] | None = None, **guard: Any) -> None:
        super().__init__(**guard)
        self.first_words = first_words or ["sorry"]
        self._ids: list[int] = []

    def settings(self) -> dict[str, Any]:
        """Return what beside the model decides the scores."""
        return super().settings() | {"first_words": self.first_words}

    def load(self, device: torch.device) -> None:
        """Load the model, and find how its answers begin with each word."""
        super().load(device)
        ids = set()
        for word in self.first_words:
            turns = (Message("user", "a"), Message("assistant", word))
            row = encode_conversation(self.tokenizer, Conversation(turns, f"first_words: {word}"))
            ids.add(row.input_ids[row.loss_mask.index(True)])
        if self.tokenizer.unk_token_id in ids:
            raise OneShotError(f"{self.name}: a word of first_words is unknown to its tokenizer.")
        self._ids = sorted(ids)

    def encoded(self, beginning: Beginning) -> list[int]:
        """Return the tokens of the prompt alone."""
        prompt = Conversation(beginning.messages, beginning.origin)
        return encode_conversation(self.tokenizer, prompt, for_generation=True).input_ids

    def scores(self, rows: list[list[int]], beginnings: Sequence[Beginning]) -> Tensor:
        """Return 1 less the probability of a refusal, or 1 where the answer is one."""
        refusal = self.last_logits(rows).softmax(-1)[:, self._ids].sum(1).cpu()
        refuses = torch.tensor([is_refusal(each.answer, "prefix") for each in beginnings])
        return (1 - refusal).where(~refuses, 1.0)
