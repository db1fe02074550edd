"""The text and the colour of a cell of a table."""

from __future__ import annotations

from typing import Any

import pandas as pd

from oneshot_lit.evaluation.metrics.registry import LM_EVAL, is_skill
from oneshot_lit.report.text import DASH

# Shares above or below which a cell is coloured: a reading aid, not a test.
_LOW, _HIGH = 0.02, 0.95
# A score is not coloured as good if its interval reaches further than this.
_WIDE = 0.1


def number(value: float | None) -> str:
    """Return a number with three digits, or a dash."""
    return DASH if value is None or pd.isna(value) else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval in brackets, or nothing."""
    return "" if pd.isna(low) else f"[{low:.3f}, {high:.3f}]"


def score(row: Any, separator: str = " ") -> str:
    """Return the value, interval and counts of a row of the scores."""
    left = f", {row.reasons}" if row.reasons else ""
    parts = number(row.value), interval(row.low, row.high), f"n {row.n}{left}"
    return separator.join(part for part in parts if part)


def verdict(key: str, value: float | None) -> str:
    """Return the colour class of a cell: good, bad or none."""
    metric = key.rsplit("/", 1)[-1]
    # For these, what is good depends on the task.
    if value is None or metric == "harmful_correct" or key.startswith(f"{LM_EVAL}/"):
        return ""
    if is_skill(key):
        return "good" if value >= _HIGH else ""
    return "good" if value <= _LOW else "bad" if value >= 0.5 else ""


def colour(row: Any) -> str:
    """Return the colour class of a row of the scores; good on few answers has none."""
    if pd.isna(row.value) or row.metric.startswith("harmfulness_score"):
        return ""
    shade = verdict(f"{row.set}/{row.metric}", row.value)
    wide = pd.notna(row.low) and max(row.value - row.low, row.high - row.value) > _WIDE
    return "" if shade == "good" and wide else shade
