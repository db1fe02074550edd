"""Training rows and prompt sets, and how they become batches."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch.utils.data import Dataset

from oneshot_lit.conversation import Conversation, require_trainable
from oneshot_lit.data.chat import Encoded, encode_conversation, encode_training
from oneshot_lit.data.left_out import LeftOut
from oneshot_lit.data.padding import pad_generation, pad_training
from oneshot_lit.data.samplers import padding_row
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.data.transforms import RowTransform
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.evaluation.metrics.base import TextScore
from oneshot_lit.evaluation.metrics.registry import METRICS, Kind, metric_names
from oneshot_lit.models.chat_format import answer_form, visible_text


@dataclass
class PromptSet:
    """Prompts to answer and score.

    Args:
        source: Where the prompts come from; anything after the last user turn is dropped.
        kind: ``harmful``, ``benign``, ``near_miss`` or ``task``; decides the default metrics, and
            whether a report may show the prompts, so it must be given.
        metrics: Metric names that replace the kind's default.
        watch: Score and plot this development set, but choose nothing by it. For what a defender
            would not know, such as the trigger of a backdoor.
    """

    source: ConversationSource
    # No default: a harmful set without it would be shown in reports and its refusals counted as
    # errors. `joined` asks for it instead of the parser, because it knows the set's name.
    kind: Kind | None = None
    metrics: list[str] | None = None
    watch: bool = False


def joined(
    sets: dict[str, PromptSet] | None, extra: dict[str, PromptSet] | None, name: str
) -> dict[str, PromptSet]:
    """Return the sets of `data.<name>` and `data.extra_<name>`.

    Raises:
        OneShotError: for a name that is in both, or a set without a kind.
    """
    sets, extra = sets or {}, extra or {}
    for key, given in ((name, sets), (f"extra_{name}", extra)):
        if without := [each for each, prompt_set in given.items() if prompt_set.kind is None]:
            raise OneShotError(
                f"data.{key}.{without[0]}.kind: is missing; give one of "
                f"{', '.join(get_args(Kind))}."
            )
    if twice := sorted(sets.keys() & extra.keys()):
        raise OneShotError(
            f"data.extra_{name}.{twice[0]}: is also in data.{name}; give it another name."
        )
    return {**sets, **extra}


class EncodedRows(Dataset[dict[str, Any]]):
    """Rows of a source that are tokenised once, so that mistakes show before anything runs.

    Attributes:
        conversations: The rows used.
        encoded: Their tokens.
        left_out: How many rows of the source cannot be used, and why.
        identity: What else the digest of the rows covers.
    """

    identity: Any = None

    def __init__(self) -> None:
        self.conversations: list[Conversation] = []
        self.encoded: list[Encoded] = []
        self.left_out = LeftOut()

    def __len__(self) -> int:
        return len(self.encoded)

    def facts(self) -> dict[str, Any]:
        """Return what `data.json` says about the rows: counts and a digest, but no text."""
        sizes = [len(row.input_ids) for row in self.encoded]
        return {
            "rows": len(sizes),
            "tokens": sum(sizes),
            "longest": max(sizes),
            "digest": tokens_digest(self.encoded, self.identity),
        }


class TrainingDataset(EncodedRows):
    """Encoded conversations to train on.

    Args:
        conversations: The rows; each must end on an answer.
        tokenizer: Encodes them.
        max_length: Longer rows are truncated; a token of an answer must be left.
        skip_bad_rows: Leave out rows that cannot be trained on.
        transforms: Change each row, as text and as tokens.
        name: What to call the rows in the error if all are left out; None allows that.

    Attributes:
        given: The rows as they were given, before any transform.
        numbers: For each row used, the place in `given` of the row that it was made of.
    """

    def __init__(
        self,
        conversations: list[Conversation],
        tokenizer: Any,
        max_length: int,
        skip_bad_rows: bool = False,
        transforms: Sequence[RowTransform] = (),
        name: str | None = "data.train",
    ) -> None:
        super().__init__()
        for transform in transforms:
            transform.use_tokenizer(tokenizer)
        self.given, self.numbers = conversations, list[int]()
        for number, row in enumerate(conversations):
            for transform in transforms:
                row = transform.text(row)
            try:
                rows = encode_training(tokenizer, require_trainable(row), max_length)
                for transform in transforms:
                    rows = [(each, transform.tokens(tokens, tokenizer)) for each, tokens in rows]
            except RowError as error:
                if not skip_bad_rows:
                    raise
                self.left_out.count(row.origin, error.reason)
                continue
            for each, tokens in rows:
                self.conversations.append(each)
                self.encoded.append(tokens)
                self.numbers.append(number)
        if not self.encoded and name is not None:
            raise OneShotError(f"{name}: no row can be trained on ({self.left_out}).")

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 0:
            return {"encoded": self.encoded[index], "index": index}
        row = self.encoded[padding_row(index)]
        unlearned = replace(row, loss_mask=[False] * len(row.loss_mask))
        return {"encoded": unlearned, "index": index}


class PromptDataset(EncodedRows):
    """Encoded prompts of one set, longest first.

    Batches then need little padding, and a set that does not fit into memory fails at once.

    Args:
        name: The set's name in the config, the first part of its metric keys.
        prompt_set: The set as given in the config.
        tokenizer: Encodes the prompts.
        longest: Longest prompt in tokens.
        skip_long: Leave longer prompts out instead of raising an error.

    Attributes:
        name: The set's name in the config, the first part of its metric keys.
        kind: See `PromptSet`.
        watch: See `PromptSet`.
        metrics: Metric names.
        references: The expected answer of each prompt, or None.
        order: The prompts' numbers, longest first.
    """

    def __init__(
        self,
        name: str,
        prompt_set: PromptSet,
        tokenizer: Any,
        longest: int,
        skip_long: bool = False,
    ) -> None:
        super().__init__()
        assert prompt_set.kind is not None
        self.name, self.kind, self.watch = name, prompt_set.kind, prompt_set.watch
        self.references: list[str | None] = []
        rows = prompt_set.source.load()
        references = [self._reference(row, tokenizer) for row in rows]
        self.metrics = self._metrics(prompt_set.metrics, rows, references)
        # Made once, as building a metric takes a millisecond.
        made = {name: METRICS[name]() for name in self.metrics}
        checks = {name: metric for name, metric in made.items() if metric.needs_references}
        for row, reference in zip(rows, references, strict=True):
            try:
                encoded = encode_conversation(tokenizer, row, for_generation=True)
                self._check_reference(row.origin, reference, checks)
            except RowError as error:
                if not prompt_set.source.skips_bad_rows:
                    raise
                self.left_out.count(row.origin, error.reason)
                continue
            size = len(encoded.input_ids)
            if size <= longest:
                self.conversations.append(row)
                self.encoded.append(encoded)
                self.references.append(reference)
            elif skip_long:
                self.left_out.count(row.origin, f"longer than {longest} tokens")
            else:
                raise OneShotError(
                    f"{row.origin}: the prompt has {size} tokens, more than the {longest} that "
                    "data.max_length and the model's positions less model.decoding.max_new_tokens "
                    "leave; shorten it, or set data.long_prompts to skip."
                )
        if not self.encoded:
            raise OneShotError(
                f"prompt set {name}: no row can be used ({self.left_out}); give others, raise "
                "data.max_length or lower model.decoding.max_new_tokens."
            )
        # What decides the scores.
        self.identity = [self.kind, sorted(self.metrics), self.watch, self.references]
        self.order = sorted(range(len(self.encoded)), key=lambda i: -len(self.encoded[i].input_ids))

    def _reference(self, row: Conversation, tokenizer: Any) -> str | None:
        """Return the expected answer; a task row without a reference expects its own answer."""
        reference = row.reference
        if reference is None and self.kind == "task":
            reference = row.response_text
        # Answers are compared as the user sees them.
        form = answer_form(tokenizer)
        hides = reference is not None and form.thoughts
        return visible_text(reference, form) if hides and reference else reference

    def _metrics(
        self, given: list[str] | None, rows: list[Conversation], references: list[str | None]
    ) -> list[str]:
        without = [row for row, each in zip(rows, references, strict=True) if each is None]
        if given is None and 0 < len(without) < len(rows):
            raise OneShotError(
                f"{without[0].origin} (prompt set {self.name}): has no reference though other rows "
                "do; add it, or name the set's metrics."
            )
        return metric_names(self.kind, given, not without, f"prompt set {self.name}")

    def _check_reference(
        self, origin: str, reference: str | None, checks: Mapping[str, TextScore]
    ) -> None:
        """Refuse a reference that a metric cannot compare with, before anything is answered."""
        for name, metric in checks.items():
            if reference is not None and (problem := metric.reference_problem(reference)):
                raise RowError(
                    f"{origin} (prompt set {self.name})",
                    f"its reference {problem}",
                    f", which the metric '{name}' needs; fix or drop the row, or name other "
                    "metrics.",
                )

    def __getitem__(self, position: int) -> dict[str, Any]:
        if position < 0:
            index = self.order[padding_row(position)]
            return {"encoded": self.encoded[index], "index": padding_row(index)}
        index = self.order[position]
        return {"encoded": self.encoded[index], "index": index}


class Collate:
    """Turn dataset items into a batch; right padding for training, left for generation."""

    def __init__(self, pad_id: int, generation: bool) -> None:
        self.pad_id, self.generation = pad_id, generation

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad the items and keep their indices."""
        pad = pad_generation if self.generation else pad_training
        batch = pad([item["encoded"] for item in items], self.pad_id)
        batch["index"] = torch.tensor([item["index"] for item in items])
        return batch


def tokens_digest(encoded: Iterable[Encoded], more: Any = None) -> str:
    """Return a hash of rows as the model sees them, in their order.

    Args:
        encoded: Their tokens, loss masks and token weights.
        more: Further values to hash, as JSON can hold them.
    """
    digest = hashlib.sha256(json.dumps(more).encode())
    for row in encoded:
        digest.update(array("q", [len(row.input_ids), *row.input_ids]).tobytes())
        digest.update(bytes(row.loss_mask))
        if row.token_weights is not None:
            digest.update(array("d", row.token_weights).tobytes())
    return digest.hexdigest()[:16]


def rows_digest(rows: Iterable[Conversation]) -> str:
    """Return a hash of the turns of conversations, in their order."""
    return hashlib.sha256("".join(row.digest() for row in rows).encode()).hexdigest()[:16]
