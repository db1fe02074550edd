"""What the data module loads: training rows, prompt sets, and the batches made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import Dataset

from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.data.conversation import Conversation
from oneshot_lit.data.padding import pad_generation, pad_training
from oneshot_lit.data.samplers import filler
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.metrics.registry import METRICS, Kind, metric_names


@dataclass
class PromptSet:
    """Prompts to answer and score.

    Args:
        source: Where the prompts come from; anything after the last user turn is dropped.
        kind: ``harmful``, ``benign``, ``near_miss`` or ``task``; decides the default metrics.
        metrics: Metric names in place of the kind's default.
        watch: Among development sets: score and draw it, but choose nothing by it. For what the
            one who repairs would not know, such as the trigger of a backdoor.
    """

    source: ConversationSource
    kind: Kind = "benign"
    metrics: list[str] | None = None
    watch: bool = False


class TrainingDataset(Dataset[dict[str, Any]]):
    """Encoded conversations; tokenised once, so that mistakes show before training."""

    def __init__(self, conversations: list[Conversation], rows: list[Encoded]) -> None:
        self.conversations, self.encoded = conversations, rows

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= 0:
            return {"encoded": self.encoded[index], "index": index}
        row = self.encoded[filler(index)]
        unlearned = replace(row, loss_mask=[False] * len(row.loss_mask))
        return {"encoded": unlearned, "index": index}


class PromptDataset(Dataset[dict[str, Any]]):
    """Encoded prompts of one set, longest first.

    So batches need little padding, and a set that does not fit into memory shows it at once.

    Args:
        name: The set's name in the config, the first part of its metric keys.
        prompt_set: What the config says of it.
        tokenizer: Encodes the prompts.
        max_length: Longest prompt in tokens.
        skip_long: Leave longer prompts out in place of raising an error.

    Attributes:
        name: The set's name in the config, the first part of its metric keys.
        kind: See `PromptSet`.
        watch: See `PromptSet`.
        metrics: Metric names.
        conversations: The prompts, in the source's order.
        references: The expected answer of each, or None.
        too_long: How many prompts are left out.
    """

    def __init__(
        self,
        name: str,
        prompt_set: PromptSet,
        tokenizer: Any,
        max_length: int,
        skip_long: bool = False,
    ) -> None:
        self.name, self.kind, self.watch = name, prompt_set.kind, prompt_set.watch
        self.conversations = prompt_set.source.load()
        self.encoded: list[Encoded] = []
        self.too_long = 0
        self._encode(tokenizer, max_length, skip_long)
        self.references = [self._reference(c) for c in self.conversations]
        unknown = [c for c, r in zip(self.conversations, self.references, strict=True) if r is None]
        if prompt_set.metrics is None and 0 < len(unknown) < len(self.conversations):
            raise OneShotError(
                f"{unknown[0].origin} (prompt set {name}): has no reference though other rows do; "
                "add it, or name the set's metrics."
            )
        self.metrics = metric_names(
            prompt_set.kind, prompt_set.metrics, not unknown, f"prompt set {name}"
        )
        self._check_references()
        self.order = sorted(range(len(self.encoded)), key=lambda i: -len(self.encoded[i].input_ids))

    def _encode(self, tokenizer: Any, max_length: int, skip_long: bool) -> None:
        limit = None if skip_long else max_length
        rows = [
            (c, encode_conversation(tokenizer, c, max_length=limit, for_generation=True))
            for c in self.conversations
        ]
        kept = [(c, row) for c, row in rows if len(row.input_ids) <= max_length]
        self.too_long = len(rows) - len(kept)
        if not kept:
            raise OneShotError(
                f"prompt set {self.name}: every prompt is longer than max_length={max_length}; "
                "raise data.max_length."
            )
        self.conversations, self.encoded = [c for c, _ in kept], [row for _, row in kept]

    def _reference(self, conversation: Conversation) -> str | None:
        """The expected answer; for a task, that is the row's own answer if it names no other."""
        if conversation.reference is None and self.kind == "task":
            return conversation.response_text
        return conversation.reference

    def _check_references(self) -> None:
        """Refuse a reference that a metric cannot compare with, before anything is answered."""
        for metric in self.metrics:
            if not METRICS[metric].needs_references:
                continue
            judge = METRICS[metric]()
            for conversation, reference in zip(self.conversations, self.references, strict=True):
                if reference is not None and (problem := judge.reference_problem(reference)):
                    raise OneShotError(
                        f"{conversation.origin} (prompt set {self.name}): its reference {problem}, "
                        f"which the metric '{metric}' needs; mend or drop the row, or name other "
                        "metrics."
                    )

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, position: int) -> dict[str, Any]:
        if position < 0:
            index = self.order[filler(position)]
            return {"encoded": self.encoded[index], "index": filler(index)}
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
