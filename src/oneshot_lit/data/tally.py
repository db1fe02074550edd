"""`Tally`: what became of every row that a source read, so that none is lost in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from oneshot_lit.errors import OneShotError

if TYPE_CHECKING:
    from oneshot_lit.conversation import Conversation


# Kinds of faults that a remark names, the most frequent first.
_KINDS = 4


@dataclass
class Tally:
    """Counts of a source's rows; all that became of them adds up.

    `read` is the sum of `unselected`, `faulty`, `dropped`, `unused` and `kept`. In a source made of
    others it is also what its parts kept, and `repeated`.

    Attributes:
        source: The source's name.
        type: Its class.
        read: Rows read, or made of the rows of the parts.
        unselected: Rows that `where` leaves out.
        faulty: Kind of fault -> rows skipped for it, with ``bad_rows: skip``.
        first_faulty: Place and kind of the first of these.
        duplicates: Rows whose turns an earlier row has already, word for word.
        conflicts: How many of the duplicates have another reference or category than that row.
        dropped: How many of the duplicates are left out.
        repeated: Rows added by giving a row of the parts again.
        edited: Rows whose turns are not as the parts gave them.
        unused: Rows beyond `skip` and `limit`.
        kept: Conversations that the source gives.
        parts: The same of the sources that it is made of.
    """

    source: str
    type: str
    read: int = 0
    unselected: int = 0
    faulty: dict[str, int] = field(default_factory=dict)
    first_faulty: str | None = None
    duplicates: int = 0
    conflicts: int = 0
    dropped: int = 0
    repeated: int = 0
    edited: int = 0
    unused: int = 0
    kept: int = 0
    parts: list[Tally] = field(default_factory=list)

    def walk(self) -> list[Tally]:
        """Return this and the parts', with theirs."""
        return [self, *(each for part in self.parts for each in part.walk())]

    def count(self, rows: Sequence[Conversation]) -> list[Conversation]:
        """Count the rows that a source has, and return the first of each."""
        first: dict[Any, Conversation] = {}
        self.conflicts = 0
        for row in rows:
            twin = first.setdefault(row.messages, row)
            self.conflicts += (row.reference, row.category) != (twin.reference, twin.category)
        self.read = len(rows) + self.unselected + sum(self.faulty.values())
        self.duplicates = len(rows) - len(first)
        return list(first.values())

    def skip(self, error: OneShotError) -> None:
        """Count a faulty row."""
        # The message itself may quote the row.
        kind = getattr(error, "kind", "faulty")
        place = getattr(error, "origin", "") or self.source
        self.first_faulty = self.first_faulty or f"{place}: {kind}"
        self.faulty[kind] = self.faulty.get(kind, 0) + 1

    @property
    def remarks(self) -> list[str]:
        """What somebody who trusts the source should know, in a few words each."""
        found = []
        if self.faulty:
            count = sum(self.faulty.values())
            kinds = sorted(self.faulty, key=lambda kind: self.faulty[kind])
            faults = [f"{self.faulty[kind]} x {kind}" for kind in kinds[: -_KINDS - 1 : -1]]
            if len(kinds) > _KINDS:
                faults.append(f"{len(kinds) - _KINDS} more kinds")
            where = f"the first is {self.first_faulty}"
            found.append(f"{count} of {self.read} rows skipped ({', '.join(faults)}); {where}")
        differing = (
            f" ({self.conflicts} of them with another reference or category than the first)"
            if self.conflicts
            else ""
        )
        if self.dropped:
            found.append(f"{self.dropped} duplicate rows left out{differing}")
        # What is repeated on purpose, or said of a part, is no news.
        elif self.duplicates > self.repeated + sum(part.duplicates for part in self.parts):
            found.append(f"{self.duplicates} rows are duplicates and kept{differing}")
        return found

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)
