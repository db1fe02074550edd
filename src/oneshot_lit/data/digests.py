"""Counts and hashes of rows: they show whether a data set has changed, and hold no text."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.datasets import PromptDataset, TrainingDataset


def tokens_digest(encoded: Iterable[Encoded], more: Any = None) -> str:
    """Return a hash of rows as the model sees them, in their order.

    Args:
        encoded: Their tokens and loss masks.
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


def facts_of(rows: Sequence[Conversation], encoded: Sequence[Encoded]) -> dict[str, Any]:
    """Return what `data.json` says about the rows of a set, without their text."""
    sizes = [len(row.input_ids) for row in encoded]
    return {
        "rows": len(rows),
        "tokens": sum(sizes),
        "longest": max(sizes),
        "digest": rows_digest(rows),
    }


def contents_of(
    rows: Mapping[str, TrainingDataset], prompt_sets: Iterable[PromptDataset]
) -> dict[str, list[Any]]:
    """Return how many rows a fit has and a hash of them, by the key that names their source.

    Rows are hashed as the model sees them, prompts together with what decides their scores. So a
    resumed run can tell whether a file, a table or a template has changed in between.

    Args:
        rows: The training rows, by the key that names their source.
        prompt_sets: The development sets.
    """
    contents: dict[str, list[Any]] = {
        key: [len(dataset), tokens_digest(dataset.encoded)] for key, dataset in rows.items()
    }
    for prompts in prompt_sets:
        scored = [prompts.kind, sorted(prompts.metrics), prompts.watch, prompts.references]
        digest = tokens_digest(prompts.encoded, scored)
        contents[f"data.val_sets.{prompts.name}"] = [len(prompts.encoded), digest]
    return contents
