"""Hashes of rows: they show whether a data set has changed, and hold no text."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterable
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded


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
