"""`SelectedRows`: the rows of a source that a selection has chosen to train on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.selection_file import read_selection
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError


class SelectedRows(ConversationSource):
    """The rows that `oneshot-lit select` has chosen, in the order of their source.

    A row is known by its content, so the source may be in another order or another file; but it
    must hold the rows that were chosen from, and no others. Of equal rows, as many are taken as
    were chosen. The rows that are left out are counted.

    Args:
        source: The rows that were chosen from.
        selection: A ``selection.json``, or the folder of the run that wrote it.
        topp: Take this share of the ranking instead of as many rows as the selection chose.
    """

    def __init__(
        self, source: ConversationSource, selection: str, topp: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if topp is not None and not 0 < topp <= 1:
            raise OneShotError(f"SelectedRows: topp must be in (0, 1], not {topp}.")
        self.source, self.selection, self.topp = source, selection, topp

    @property
    def parts(self) -> Sequence[ConversationSource]:
        """The source that was chosen from."""
        return (self.source,)

    def describe(self) -> str:
        """Return the source's name."""
        return self.source.describe()

    def rows(self) -> list[Conversation]:
        """Return the chosen rows.

        Raises:
            OneShotError: if there is no such selection, or it was made of other rows.
        """
        ranking, facts = read_selection(Path(self.selection).expanduser())
        rows = self.source.load()
        digests = [row.digest() for row in rows]
        ranked = Counter(each.digest for each in ranking)
        others = Counter(digests)
        others.subtract(ranked)
        # Those without a token to learn were seen by the selection, but not ranked.
        others.subtract(Counter(str(digest) for digest in facts.get("skipped", [])))
        for digest, number in others.items():
            if number < 0:
                lost = next((f"row {r.row}" for r in ranking if r.digest == digest), "a row")
                raise OneShotError(
                    f"{self.selection}: was made of other rows than {self.source.describe()}, "
                    f"which lacks {lost} of it; give the source that was chosen from."
                )
            if number > 0:
                raise OneShotError(
                    f"{rows[digests.index(digest)].origin}: was not seen by the selection "
                    f"{self.selection}; run it on this source."
                )
        count = int(facts["m"]) if self.topp is None else int(self.topp * len(ranking))
        if count < 1:
            raise OneShotError(f"SelectedRows: topp {self.topp} keeps no row; raise it.")
        wanted = Counter(each.digest for each in ranking[:count])
        kept = []
        for row, digest in zip(rows, digests, strict=True):
            if wanted[digest] > 0:
                wanted[digest] -= 1
                kept.append(row)
            else:
                self.left_out.count(row.origin, "not chosen by the selection")
        return kept
