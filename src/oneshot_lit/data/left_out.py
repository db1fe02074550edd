"""`LeftOut`: how many rows a source or a data set leaves out, by reason."""

from __future__ import annotations

from collections import Counter


class LeftOut:
    """Counts of rows left out; they hold no text of any row.

    Attributes:
        reasons: Reason -> number of rows.
        first: Place and reason of the first row.
    """

    def __init__(self) -> None:
        self.reasons: Counter[str] = Counter()
        self.first = ""

    def __bool__(self) -> bool:
        return bool(self.reasons)

    def count(self, origin: str, reason: str) -> None:
        """Count a row."""
        self.first = self.first or f"{origin}: {reason}"
        self.reasons[reason] += 1

    def add(self, other: LeftOut) -> None:
        """Add the counts of another."""
        self.first = self.first or other.first
        self.reasons += other.reasons

    def __str__(self) -> str:
        named = ", ".join(f"{number} x {reason}" for reason, number in self.reasons.most_common())
        total = self.reasons.total()
        rows = "row" if total == 1 else "rows"
        return f"{total} {rows} left out ({named}); the first is {self.first}"
