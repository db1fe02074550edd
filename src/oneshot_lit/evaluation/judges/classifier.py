"""`ClassifierJudge`: a local Hugging Face model that judges; `published` has the known ones."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Answer, Judge, Verdict
from oneshot_lit.io.files import read_text
from oneshot_lit.io.read_files import require_file


class ClassifierJudge(Judge):
    """Base class of local classifiers: causal models that write a verdict, or models with a head.

    Replies are greedy. Only safetensors weights are loaded, and no code of the repository runs.
    Subclasses set the attributes and implement `read` or, with a head, `read_head`.

    Args:
        model_name_or_path: Folder, ``.gguf`` file or hub name of the classifier.
        template: A text file with `{behavior}` and `{generation}`, in place of the usual prompt.
        max_new_tokens: Longest reply in tokens; the classifier's own if not given.
        batch_size: Answers judged at once; a model with a head gets one after the other.
        max_length: Longest prompt in tokens; a longer one could not be judged (`too_long`).
        dtype: Floating-point type of the weights.
        device: `auto`, or a device of torch such as `cuda:1`.
        metric: Name of the metric, if not the classifier's own.
        name: Name of the judge in files and results.

    Attributes:
        format: Version of prompt and reading; change it with every word.
        metric: Name of the metric, unless the user gives one.
        reply_tokens: Longest reply in tokens, unless the user gives one.
        head: Whether the model has a classification head, rather than writing its reply.
        prompt_template: Text with `{behavior}` and `{generation}` that makes the prompt.
        marks: Texts that end a turn, beside those that the tokenizer knows.
    """

    format: str
    metric: ClassVar[str]
    reply_tokens: ClassVar[int] = 1
    head: ClassVar[bool] = False
    prompt_template: str | None = None
    marks: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        model_name_or_path: str,
        template: str | None = None,
        max_new_tokens: int | None = None,
        batch_size: int = 8,
        max_length: int = 4096,
        dtype: str = "bfloat16",
        device: str = "auto",
        metric: str | None = None,
        name: str = "classifier",
    ) -> None:
        self.max_new_tokens = self.reply_tokens if max_new_tokens is None else max_new_tokens
        if min(batch_size, max_length, self.max_new_tokens) < 1:
            raise OneShotError(
                "judge.batch_size, judge.max_length and judge.max_new_tokens must be at least 1."
            )
        format_version = self.format
        if template is not None:
            # A file ends with a line end that is not part of the prompt.
            self.prompt_template = read_text(require_file(template)).removesuffix("\n")
            for place in ("{behavior}", "{generation}"):
                if place not in self.prompt_template:
                    raise OneShotError(f"judge.template: {template}: lacks {place}; put it in.")
            digest = hashlib.sha256(self.prompt_template.encode()).hexdigest()
            format_version += f"-{digest[:12]}"
        super().__init__(name, f"{format_version}:{model_name_or_path}", (metric or self.metric,))
        self.model_name_or_path = model_name_or_path
        self.batch_size = batch_size
        self.max_length = max_length
        self.dtype = dtype
        self.device = device
        # Prompts of like length share a batch; a chunk is what a killed run may have to do again.
        self.chunk = batch_size * 8
        self._loaded: tuple[Any, Any] | None = None

    def prompt(self, answer: Answer, tokenizer: Any) -> str:
        """Return the prompt about one answer: the template with the last user turn and the output.

        Neither can end its turn or fill another place.
        """
        texts = {"behavior": answer.prompt, "generation": answer.output}
        safe = {key: self.disarmed(text, tokenizer) for key, text in texts.items()}
        places = re.compile(r"\{(behavior|generation)\}")
        return places.sub(lambda place: safe[place[1]], str(self.prompt_template))

    def read(self, reply: str) -> Verdict | None:
        """Return what a written reply says, or None if it is none of the allowed ones."""
        raise NotImplementedError

    def read_head(self, chances: Mapping[str, float]) -> Verdict:
        """Return what the probabilities of a head's categories say."""
        raise NotImplementedError

    def verdict(self, score: float, labels: tuple[str, ...] = ()) -> Verdict:
        """Return the verdict of a score and the categories that the classifier names."""
        return Verdict({self.metrics[0]: score}, labels=labels)

    def disarmed(self, text: str, tokenizer: Any) -> str:
        """Return a text in which nothing is left that the model reads as the end of a turn."""
        added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
        return disarm(text, [*self.marks, *tokenizer.all_special_tokens, *added])

    def judge(self, answers: Sequence[Answer]) -> list[Verdict]:
        """Ask about every answer, those of like length together."""
        model, tokenizer = self._load()
        own = getattr(model.config, "max_position_embeddings", None) or self.max_length
        longest = min(self.max_length, own - (0 if self.head else self.max_new_tokens))
        ids = [_encode(tokenizer, self.prompt(each, tokenizer)) for each in answers]
        fitting = [n for n, row in enumerate(ids) if len(row) <= longest]
        order = sorted(fitting, key=lambda n: len(ids[n]))
        ask = self._by_head if self.head else self._by_reply
        verdicts = dict.fromkeys(range(len(answers)), Verdict.unjudged(self.metrics, "too_long"))
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            verdicts |= dict(zip(part, ask([ids[n] for n in part]), strict=True))
        return list(verdicts.values())

    def settings(self) -> dict[str, Any]:
        """Return what may change a verdict, and a hash of the files behind a folder's name."""
        return {
            "dtype": self.dtype,
            "max_length": self.max_length,
            "max_new_tokens": self.max_new_tokens,
            "model_sha256": model_digest(self.model_name_or_path),
        }

    def _by_reply(self, rows: list[list[int]]) -> list[Verdict]:
        from oneshot_lit.models.chat_format import AnswerForm
        from oneshot_lit.models.generation import Decoding, generate_answers

        model, tokenizer = self._load()
        own = model.generation_config.eos_token_id
        own = own if isinstance(own, list) else [own]
        replies = generate_answers(
            model,
            tokenizer,
            tokenizer.pad({"input_ids": rows}, return_tensors="pt", verbose=False).to(model.device),
            stop_ids=sorted({i for i in (*own, tokenizer.eos_token_id) if i is not None}),
            decoding=Decoding(max_new_tokens=self.max_new_tokens),
            # A guard's template writes one question, not a chat: `read` gets the whole reply.
            form=AnswerForm(),
        )
        malformed = Verdict.unjudged(self.metrics, "malformed")
        return [self.read(reply) or malformed for reply in replies]

    def _by_head(self, rows: list[list[int]]) -> list[Verdict]:
        import torch

        model, _ = self._load()
        names = [str(model.config.id2label[n]) for n in range(model.config.num_labels)]
        verdicts = []
        for row in rows:
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([row], device=model.device)).logits[0]
            chances = dict(zip(names, logits.float().sigmoid().tolist(), strict=True))
            unknown = bool(logits.isnan().any())
            verdicts.append(
                Verdict.unjudged(self.metrics, "not_a_number")
                if unknown
                else self.read_head(chances)
            )
        return verdicts

    def _load(self) -> tuple[Any, Any]:
        """Return model and tokenizer, loaded at the first answer: mistakes elsewhere show first.

        Raises:
            OneShotError: if they cannot be loaded, or not onto this device.
        """
        import torch
        from transformers.utils.logging import disable_progress_bar

        from oneshot_lit.models.adapters import is_adapter
        from oneshot_lit.models.loading import load_model, load_tokenizer, resolve_dtype

        if self._loaded is not None:
            return self._loaded
        name, device = self.model_name_or_path, self.device
        if self.head and is_adapter(name):
            raise OneShotError(f"{name}: an adapter without its head's model; merge it first.")
        if not sys.stderr.isatty():
            disable_progress_bar()
        # It names the norms of a model that nobody shards.
        logging.getLogger("transformers.distributed.tensor_parallel").setLevel(logging.ERROR)
        auto = "AutoModelForSequenceClassification" if self.head else "AutoModelForCausalLM"
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            tokenizer = load_tokenizer(name)
            model = load_model(name, dtype=resolve_dtype(self.dtype), auto_class=auto)
            model.to(torch.device(device))
        except OneShotError as error:
            # The loader names the keys of a module.
            raise OneShotError(str(error).replace("model.", "judge.")) from error
        except (RuntimeError, AssertionError) as error:
            reason = (str(error).splitlines() or [""])[0][:200]
            raise OneShotError(f"judge.device '{device}': cannot be used ({reason}).") from error
        if self.head:
            kind, labels = model.config.problem_type, model.config.num_labels
            # A head whose labels exclude each other has no probability for each.
            if kind not in (None, "multi_label_classification") or (kind is None and labels == 2):
                raise OneShotError(
                    f"judge.model_name_or_path: {name}: problem_type {kind} with {labels} labels; "
                    "a head must give each label a probability of its own (problem_type "
                    "multi_label_classification in its config.json, if it does)."
                )
            # A text may end with the token that pads; without one the head reads the last token.
            model.config.get_text_config().pad_token_id = None
        elif tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "left"
        self._loaded = model.eval(), tokenizer
        return self._loaded


def model_digest(name: str) -> str | None:
    """Return a hash of the names, sizes and times of a folder's files; None for a hub name.

    The files of an adapter's base belong to it. Of a ``.gguf`` file it is that of the content.
    """
    from oneshot_lit.models.adapters import base_of, is_adapter
    from oneshot_lit.models.gguf import gguf_facts

    for digest in gguf_facts(name).values():
        return digest[:16]
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return None
    folders = [folder, Path(base_of(folder))] if is_adapter(folder) else [folder]
    files = [path for each in folders for path in sorted(each.glob("*")) if path.is_file()]
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Return token ids; a prompt that brings its start token gets no second one."""
    started = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
    ids: list[int] = tokenizer(text, add_special_tokens=not started)["input_ids"]
    return ids


def disarm(text: str, marks: Iterable[str]) -> str:
    """Return a text in which no mark is left: a space parts its first letter from the rest.

    So an answer cannot end its turn and speak in the judge's place. Marks of blanks, or of a single
    letter among blanks, end no turn and cannot be parted; they stay.
    """
    known = sorted({m for m in marks if len(m.strip()) > 1}, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, known)) or "(?!)")

    def part(mark: re.Match[str]) -> str:
        # Behind its first letter: a mark that begins with a blank would survive another one there.
        behind = len(mark[0]) - len(mark[0].lstrip()) + 1
        return f"{mark[0][:behind]} {mark[0][behind:]}"

    # Each round widens a gap between two letters beyond that of some mark, so the loop ends.
    while pattern.search(text):
        text = pattern.sub(part, text)
    return text
