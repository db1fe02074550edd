"""Rows of all processes, for ``outcomes.jsonl`` and ``predictions.jsonl``."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch import Trainer

from oneshot_lit.strategies.exchange import everyones

OUTCOMES_FILE = "outcomes.jsonl"


def gathered_rows(
    trainer: Trainer, mine: list[dict[str, Any]], loaders: Any
) -> list[dict[str, Any]]:
    """Return the rows of all processes, in the order of the sets and of their sources."""
    loaders = loaders if isinstance(loaders, (list, tuple)) else [loaders]
    sets = [loader.dataset.name for loader in loaders]
    rows = [row for part in everyones(trainer, mine) for row in part]
    return sorted(rows, key=lambda row: (sets.index(row["set"]), row["index"]))


def json_lines(rows: list[dict[str, Any]]) -> str:
    """Return rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
