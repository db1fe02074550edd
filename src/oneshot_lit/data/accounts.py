"""What a run records of each data set, and what it says of it."""

from __future__ import annotations

import hashlib
import json
import re
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError


def account(
    name: str,
    source: ConversationSource | None,
    rows: Sequence[Conversation],
    encoded: Sequence[Encoded],
    tokenizer: Any,
    *,
    prompts_only: bool = False,
) -> dict[str, Any]:
    """Return what a run records of a data set, as plain values; warn of what should be known.

    Args:
        name: The set's name in the record.
        source: Where the rows come from; None for what is no source.
        rows: The conversations used.
        encoded: Their tokens.
        tokenizer: What encoded them.
        prompts_only: Whether the turns after the last user turn are not used.
    """
    lengths = [len(row.input_ids) for row in encoded]
    # What is repeated, as an instance is, counts once.
    distinct = {row.origin: row.prompt if prompts_only else row for row in rows}
    special = holding_special_tokens(distinct.values(), tokenizer)
    if special:
        rank_zero_warn(
            f"data set {name}: {len(special)} rows hold special tokens of the tokenizer in their "
            f"text, such as {special[0].origin}; they act as the template's own"
        )
    for tally in [] if source is None else source.tallies():
        for remark in tally.remarks:
            rank_zero_warn(f"{tally.source} (data set {name}): {remark}")
    return {
        "rows": len(rows),
        "tokens": sum(lengths),
        "longest": max(lengths),
        "digest": rows_digest(rows),
        "special_tokens": len(special),
        "sources": [] if source is None else [source.tally.as_dict()],
    }


def tokens_digest(encoded: Iterable[Encoded], more: Any = None) -> str:
    """Return a hash of rows as the model sees them, in their order.

    Args:
        encoded: Their tokens and loss masks.
        more: What else counts, as JSON can hold it.
    """
    digest = hashlib.sha256(json.dumps(more).encode())
    for row in encoded:
        digest.update(array("q", [len(row.input_ids), *row.input_ids]).tobytes())
        digest.update(bytes(row.loss_mask))
    return digest.hexdigest()[:16]


def rows_digest(rows: Iterable[Conversation]) -> str:
    """Return a hash of the turns of conversations, in their order."""
    return hashlib.sha256("".join(row.digest() for row in rows).encode()).hexdigest()[:16]


def holding_special_tokens(rows: Iterable[Conversation], tokenizer: Any) -> list[Conversation]:
    """Return the conversations whose text holds a special token, which ends turns or begins some.

    A tokenizer does not tell the token that the template writes from the same letters in a text.
    """
    if getattr(tokenizer, "split_special_tokens", False):
        return []
    added = tokenizer.added_tokens_decoder.values()
    tokens = {*tokenizer.all_special_tokens, *(str(t) for t in added if t.special)} - {""}
    if not tokens:
        return []
    pattern = re.compile("|".join(map(re.escape, sorted(tokens))))
    return [row for row in rows if any(pattern.search(m.content) for m in row.messages)]


def warn_left_out(name: str, errors: Sequence[OneShotError]) -> None:
    """Say how many rows have a fault that shows only in their use."""
    if errors:
        first = errors[0]
        kind, origin = getattr(first, "kind", "faulty"), getattr(first, "origin", "")
        rank_zero_warn(
            f"data set {name}: {len(errors)} rows that cannot be used are left out; the first is "
            f"{origin}: {kind}"
        )
