"""The one conversation that realignment repeats: written out, or one row of a source."""

from __future__ import annotations

from pathlib import Path

from oneshot_lit.conversation import (
    Conversation,
    conversation_from_pair,
    require_trainable,
)
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError, did_you_mean


class SafetyInstance:
    """Base of the ways to give the one safety example; subclass it and implement `load`."""

    def load(self) -> Conversation:
        """Return the instance."""
        raise NotImplementedError


class InlineInstance(SafetyInstance):
    """One safety example, written out.

    Args:
        prompt: The user turn.
        response: The answer to learn.
        system: The system turn, if any.
    """

    def __init__(self, prompt: str, response: str, system: str | None = None) -> None:
        self.prompt, self.response, self.system = prompt, response, system

    def load(self) -> Conversation:
        """Return the instance.

        Raises:
            OneShotError: if its prompt or response is empty.
        """
        if not self.prompt.strip():
            raise OneShotError("data.instance.prompt: is empty; give the user turn.")
        return require_trainable(
            conversation_from_pair(
                self.prompt, self.response, system=self.system, origin="data.instance"
            )
        )


class PoolInstance(SafetyInstance):
    """One safety example, taken from a source such as the candidate pool or a file.

    Args:
        source: The source that holds it.
        id: Its id.
        row: Its row, counted from 1 after the source's shuffle and `skip`; instead of the id.
    """

    def __init__(
        self, source: ConversationSource, id: str | None = None, row: int | None = None
    ) -> None:
        # jsonargparse 4.53 hands `--data.instance.id null` over as the text "None".
        self.source, self.id, self.row = source, None if id == "None" else id, row

    def load(self) -> Conversation:
        """Return the instance.

        Raises:
            OneShotError: unless exactly one of `id` and `row` is given, and one row matches.
        """
        if (self.id is None) == (self.row is None):
            raise OneShotError(
                "data.instance: give exactly one of id and row, and null for the other."
            )
        rows = self.source.load()
        if self.row is not None:
            if not 1 <= self.row <= len(rows):
                raise OneShotError(
                    f"data.instance: {self.source.describe()} has rows 1 to {len(rows)}, not "
                    f"{self.row}."
                )
            return require_trainable(rows[self.row - 1])
        matches = [r for r in rows if r.id == self.id]
        if len(matches) != 1:
            hint = did_you_mean(str(self.id), [r.id for r in rows if r.id])
            problem = "no row" if not matches else f"{len(matches)} rows"
            raise OneShotError(
                f"data.instance: {self.source.describe()} has {problem} with id '{self.id}'{hint}."
            )
        return require_trainable(matches[0])


class SelectedInstance(SafetyInstance):
    """The safety example that a selection has chosen.

    Args:
        source: The pool that was chosen from.
        selection: A ``selection.json``, or the folder of the run that wrote it.
        rank: The place in the ranking to use; 1 is the best.
    """

    def __init__(self, source: ConversationSource, selection: str, rank: int = 1) -> None:
        self.source, self.selection, self.rank = source, selection, rank

    def load(self) -> Conversation:
        """Return the instance.

        Raises:
            OneShotError: if there is no such selection or rank, or the pool lacks that candidate.
        """
        from oneshot_lit.data.selection_file import read_selection

        ranking, _ = read_selection(Path(self.selection).expanduser())
        if not 1 <= self.rank <= len(ranking):
            raise OneShotError(
                f"data.instance.rank: {self.selection} ranks 1 to {len(ranking)}, not {self.rank}."
            )
        wanted = ranking[self.rank - 1]
        # Compared by content, so the pool may be in another order or another file.
        matches = [row for row in self.source.load() if row.digest() == wanted.digest]
        if not matches:
            raise OneShotError(
                f"data.instance: {self.source.describe()} has no row like rank {self.rank} of "
                f"{self.selection} (id {wanted.id}, row {wanted.row}); name the pool that was "
                "chosen from."
            )
        return require_trainable(matches[0])
