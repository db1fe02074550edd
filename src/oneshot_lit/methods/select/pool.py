"""Checks of a candidate pool before anything is chosen from it."""

from __future__ import annotations

from collections.abc import Sequence

from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import is_refusal


def check_pool(pool: Sequence[Conversation], m: int, *, refusals: bool = True) -> None:
    """Refuse a pool that is not fit to choose a safety instance from.

    Args:
        pool: The candidates; each ends on an answer.
        m: How many are to be chosen.
        refusals: Ask for a refusal phrase in each answer.

    Raises:
        OneShotError: if it is smaller than `m`, has two equal rows, or a row without a refusal.
    """
    if m < 1:
        raise OneShotError(f"model.m must be at least 1, not {m}.")
    if len(pool) < m:
        raise OneShotError(
            f"data.train: the pool has {len(pool)} candidates, fewer than model.m={m}; give more "
            "or lower it."
        )
    first: dict[object, Conversation] = {}
    for row in pool:
        twin = first.setdefault(row.messages, row)
        if twin is not row:
            raise OneShotError(f"{row.origin}: the same candidate as {twin.origin}; leave one out.")
        if refusals and not is_refusal(row.response_text or ""):
            raise OneShotError(
                f"{row.origin}: the candidate's answer has no refusal phrase; fix the row, or set "
                "model.require_refusals to false."
            )
