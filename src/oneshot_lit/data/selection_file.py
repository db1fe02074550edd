"""``selection.json``: how candidates are ranked, by what, and where they come from.

It holds no text: candidates are named by id, place and a hash of their turns.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.runs import SELECTION_FILE


@dataclass(frozen=True)
class Ranked:
    """A candidate in a ranking.

    Attributes:
        rank: From 1, the best.
        row: Its row in the pool, from 1.
        id: Its id, if it has one.
        category: Its category, if it has one.
        score: Higher is better; what it means depends on the selector.
        digest: Hash of its turns.
    """

    rank: int
    row: int
    id: str | None
    category: str | None
    score: float
    digest: str


def rank_candidates(
    pool: Sequence[Conversation], scores: Sequence[float], rows: Sequence[int] | None = None
) -> list[Ranked]:
    """Return the candidates, best first; of equal scores the earlier row.

    Args:
        pool: The candidates.
        scores: One each.
        rows: Row of each in its source, from 1; their places in the pool if not given.

    Raises:
        ValueError: if there are not as many scores as candidates, or one is not a number.
    """
    if len(scores) != len(pool):
        raise ValueError(f"{len(scores)} scores of {len(pool)} candidates")
    if any(score != score for score in scores):
        raise ValueError("a score is not a number")
    places = range(1, len(pool) + 1) if rows is None else rows
    order = sorted(range(len(pool)), key=lambda i: (-scores[i], i))
    return [
        Ranked(rank, places[i], p.id, p.category, float(scores[i]), p.digest())
        for rank, i in enumerate(order, 1)
        for p in (pool[i],)
    ]


def write_selection(
    root: Path, ranking: Sequence[Ranked], m: int, provenance: dict[str, Any]
) -> Path:
    """Write ``<root>/selection.json``; the first `m` of the ranking are the choice."""
    target = root / SELECTION_FILE
    rows = [vars(each) for each in ranking]
    write_json_atomically(target, {"m": m, "ranking": rows, "provenance": provenance})
    return target


def read_selection(path: Path) -> tuple[list[Ranked], dict[str, Any]]:
    """Return the ranking of a ``selection.json``, or of the folder that holds one, and its facts.

    The facts are its provenance, and ``m``, how many of the ranking are the choice.

    Raises:
        OneShotError: if there is none, or it is not what a selection writes.
    """
    file = path / SELECTION_FILE if path.is_dir() else path
    if not file.is_file():
        raise OneShotError(f"{file}: no selection; run one, or name its {SELECTION_FILE}.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        ranking = [Ranked(**row) for row in content["ranking"]]
        facts = {**content["provenance"], "m": int(content["m"])}
    except (ValueError, KeyError, TypeError) as error:
        raise OneShotError(f"{file}: is not what a selection writes; run it again.") from error
    return ranking, facts
