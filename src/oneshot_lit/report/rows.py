"""``outcomes.jsonl`` and judgments as one table: a row for each answer and metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.read_files import read_jsonl
from oneshot_lit.report.schema import (
    COUNT,
    NUMBER,
    OPTIONAL_TEXT,
    TEXT,
    require_on_scale,
    require_shape,
)
from oneshot_lit.report.text import map_texts, visible

# What scored an answer: the test, or else the name of a judge.
TEST = "test"
# `place` is the index of the prompt in its set; `prompt` and `digest` are hashes of the prompt,
# and of prompt and answer.
_FACTS = {"set": "set", "index": "place", "category": "category", "prompt": "prompt"}
_FACTS |= {"digest": "digest", "reason": "reason"}
_ROW = {"set": TEXT, "index": COUNT, "scores": {"*": NUMBER}}
_ROW |= dict.fromkeys(("category", "prompt", "digest", "reason"), OPTIONAL_TEXT)
COLUMNS = ["by", "metric", "score", *_FACTS.values()]


def read_scores(path: Path, by: str, samples: Mapping[str, int]) -> pd.DataFrame:
    """Return the scores of a file with the columns `COLUMNS`; an empty table without a file.

    Args:
        path: ``outcomes.jsonl`` or the judgments of one judge.
        by: `TEST` or the name of the judge.
        samples: Set -> number of prompts that ``metrics.json`` counts.

    Raises:
        OneShotError: naming the faulty row.
    """
    again = f"run oneshot-lit {'test' if by == TEST else 'judge'} again"
    metrics: dict[str, Any] = {}
    places = set()
    records = []
    for number, raw in read_jsonl(path) if path.is_file() else ():
        origin = f"{path} row {number}"
        row = map_texts(raw, visible)
        require_shape(row, _ROW, origin, again)
        require_on_scale(row["scores"], f"{origin}: scores", again)
        name, place = row["set"], row["index"]
        if (name, place) in places:
            raise OneShotError(f"{origin}: prompt {place} of '{name}' is there twice; {again}.")
        places.add((name, place))
        others = metrics.setdefault(name, row["scores"].keys()) ^ row["scores"].keys()
        if others:
            raise OneShotError(
                f"{origin}: not all rows of '{name}' have a score of '{min(others)}'; {again}."
            )
        facts = {column: row.get(key) for key, column in _FACTS.items()}
        for metric, score in row["scores"].items():
            records.append({**facts, "by": by, "metric": metric, "score": score})
    for name, count in Counter(name for name, _ in places).items():
        if samples.get(name) != count:
            raise OneShotError(
                f"{path}: has {count} rows of '{name}' and metrics.json counts "
                f"{samples.get(name, 0)}; {again}."
            )
    return pd.DataFrame(records, columns=COLUMNS).astype({"score": float})
