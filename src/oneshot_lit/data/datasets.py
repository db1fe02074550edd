"""Training rows and prompt sets, and how they become batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from torch.utils.data import Dataset

from oneshot_lit.conversation import Conversation, require_trainable
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.data.left_out import LeftOut
from oneshot_lit.data.limits import Limits
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


def _require_kinds(sets: dict[str, PromptSet], key: str) -> None:
    """Refuse sets without a kind, naming the key."""
    for name, prompt_set in sets.items():
        if prompt_set.kind is None:
            raise OneShotError(
                f"data.{key}.{name}.kind: is missing; give one of {', '.join(get_args(Kind))}."
            )


def joined(
    sets: dict[str, PromptSet] | None, extra: dict[str, PromptSet] | None, name: str
) -> dict[str, PromptSet]:
    """Return the sets of `data.<name>` and `data.extra_<name>`.

    Raises:
        OneShotError: for a name that is in both, or a set without a kind.
    """
    sets, extra = sets or {}, extra or {}
    _require_kinds(sets, name)
    _require_kinds(extra, f"extra_{name}")
    if twice := sorted(sets.keys() & extra.keys()):
        raise OneShotError(
            f"data.extra_{name}.{twice[0]}: is also in data.{name}; give it another name."
        )
    return {**sets, **extra}


class TrainingDataset(Dataset[dict[str, Any]]):
    """Encoded conversations; tokenised once, so that mistakes show before training.

    Args:
        conversations: The rows; each must end on an answer.
        tokenizer: Encodes them.
        limits: Longer rows are truncated; a token of an answer must be left.
        skip_bad_rows: Leave out rows that cannot be trained on.
        transforms: Change each row, as text and as tokens.

    Attributes:
        conversations: The rows used.
        encoded: Their tokens.
        left_out: How many rows are left out, and why.
    """

    def __init__(
        self,
        conversations: list[Conversation],
        tokenizer: Any,
        limits: Limits,
        skip_bad_rows: bool = False,
        transforms: Sequence[RowTransform] = (),
    ) -> None:
        for transform in transforms:
            conversations = [transform.text(row) for row in conversations]

        def encode(row: Conversation) -> Encoded:
            row = require_trainable(row)
            encoded = encode_conversation(tokenizer, row, max_length=limits.max_length)
            for transform in transforms:
                encoded = transform.tokens(encoded, tokenizer)
            limits.check_row(row.origin, len(encoded.input_ids))
            return encoded

        self.left_out = LeftOut()
        rows = _encoded(conversations, encode, self.left_out if skip_bad_rows else None)
        if not rows:
            raise OneShotError(f"data.train: no row can be trained on ({self.left_out}).")
        self.conversations, self.encoded = [c for c, _ in rows], [e for _, e in rows]

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 0:
            return {"encoded": self.encoded[index], "index": index}
        row = self.encoded[padding_row(index)]
        unlearned = replace(row, loss_mask=[False] * len(row.loss_mask))
        return {"encoded": unlearned, "index": index}


def _encoded(
    rows: list[Conversation],
    encode: Callable[[Conversation], Encoded],
    left_out: LeftOut | None,
) -> list[tuple[Conversation, Encoded]]:
    """Return the rows that can be encoded, with their tokens.

    Args:
        rows: The conversations.
        encode: Returns the tokens of a row, or raises what is wrong with it.
        left_out: Counts faulty rows; if None, the first one raises its error.
    """
    encoded = []
    for row in rows:
        try:
            encoded.append((row, encode(row)))
        except RowError as error:
            if left_out is None:
                raise
            left_out.count_error(error, row.origin)
    return encoded


class PromptDataset(Dataset[dict[str, Any]]):
    """Encoded prompts of one set, longest first.

    Batches then need little padding, and a set that does not fit into memory fails at once.

    Args:
        name: The set's name in the config, the first part of its metric keys.
        prompt_set: The set as given in the config.
        tokenizer: Encodes the prompts.
        limits: Longest prompt in tokens.
        skip_long: Leave longer prompts out instead of raising an error.

    Attributes:
        name: The set's name in the config, the first part of its metric keys.
        kind: See `PromptSet`.
        watch: See `PromptSet`.
        metrics: Metric names.
        conversations: The prompts, in the source's order.
        references: The expected answer of each, or None.
        left_out: How many rows are left out, and why.
    """

    def __init__(
        self,
        name: str,
        prompt_set: PromptSet,
        tokenizer: Any,
        limits: Limits,
        skip_long: bool = False,
    ) -> None:
        assert prompt_set.kind is not None
        self.name, self.watch = name, prompt_set.watch
        self.kind: Kind = prompt_set.kind
        self.left_out = LeftOut()
        self._faulty = self.left_out if prompt_set.source.skips_bad_rows else None
        rows = self._load(prompt_set, tokenizer, limits, skip_long)
        self.conversations, self.encoded = [c for c, _ in rows], [e for _, e in rows]
        form = answer_form(tokenizer)
        self.references = [
            # Answers are compared as the user sees them.
            reference if reference is None or not form.thoughts else visible_text(reference, form)
            for reference in map(self._reference, self.conversations)
        ]
        unknown = [c for c, r in zip(self.conversations, self.references, strict=True) if r is None]
        if prompt_set.metrics is None and 0 < len(unknown) < len(self.conversations):
            raise OneShotError(
                f"{unknown[0].origin} (prompt set {name}): has no reference though other rows do; "
                "add it, or name the set's metrics."
            )
        self.metrics = metric_names(
            self.kind, prompt_set.metrics, not unknown, f"prompt set {name}"
        )
        self._check_references()
        self.order = sorted(range(len(self.encoded)), key=lambda i: -len(self.encoded[i].input_ids))

    def _load(
        self, prompt_set: PromptSet, tokenizer: Any, limits: Limits, skip_long: bool
    ) -> list[tuple[Conversation, Encoded]]:
        longest = None if skip_long else limits.max_length

        def encode(row: Conversation) -> Encoded:
            encoded = encode_conversation(tokenizer, row, max_length=longest, for_generation=True)
            if not skip_long:
                limits.check_prompt(row.origin, len(encoded.input_ids))
            return encoded

        short = []
        for row, encoded in _encoded(prompt_set.source.load(), encode, self._faulty):
            if len(encoded.input_ids) <= limits.prompt:
                short.append((row, encoded))
            else:
                self.left_out.count(row.origin, f"longer than {limits.prompt} tokens")
        self._require_rows(short)
        return short

    def _require_rows(self, rows: Sequence[Any]) -> None:
        if not rows:
            raise OneShotError(
                f"prompt set {self.name}: no row can be used ({self.left_out}); give others, raise "
                "data.max_length or lower model.decoding.max_new_tokens."
            )

    def _reference(self, conversation: Conversation) -> str | None:
        """The expected answer; a task row without a reference expects its own answer."""
        if conversation.reference is None and self.kind == "task":
            return conversation.response_text
        return conversation.reference

    def _check_references(self) -> None:
        """Refuse or leave out rows with a reference that a metric cannot compare with.

        Checked before anything is answered.
        """
        metrics = {m: METRICS[m]() for m in self.metrics if METRICS[m].needs_references}
        good = []
        for index, row in enumerate(self.conversations):
            error = self._reference_error(row.origin, self.references[index], metrics)
            if error is None:
                good.append(index)
            elif self._faulty is None:
                raise error
            else:
                self._faulty.count_error(error, row.origin)
        self._require_rows(good)
        self.conversations = [self.conversations[i] for i in good]
        self.encoded = [self.encoded[i] for i in good]
        self.references = [self.references[i] for i in good]

    def _reference_error(
        self, origin: str, reference: str | None, metrics: dict[str, TextScore]
    ) -> RowError | None:
        for name, metric in metrics.items():
            if reference is not None and (problem := metric.reference_problem(reference)):
                return RowError(
                    f"{origin} (prompt set {self.name})",
                    f"its reference {problem}",
                    f", which the metric '{name}' needs; fix or drop the row, or name other "
                    "metrics.",
                )
        return None

    def __len__(self) -> int:
        return len(self.order)

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
