"""`StarScores`: how safe guards find each beginning of an answer (STAR-DSS)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, takewhile
from typing import Any

import torch

from oneshot_lit.conversation import Conversation, Message
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.annotate.base import Annotation, Numbers
from oneshot_lit.methods.annotate.guards import Beginning, Guard
from oneshot_lit.methods.finetuning.star_dss import (
    KIND,
    VALUES,
    mean_safety,
    prefix_word_counts,
)


class StarScores(Annotation):
    """Score the beginnings of each answer, M words longer each time (arXiv 2505.17196).

    Writes, for each row, the mean of the guards' probabilities that the answer is safe up to there
    (``values``), and where that is in the row's tokens (``exact`` and ``released``; see `StarDSS`).

    Args:
        guards: The models that judge; each is loaded in turn.
        chunk_words: M. The released code counts words, the paper tokens.
    """

    kind = KIND

    def __init__(
        self, *args: Any, guards: list[Guard], chunk_words: int = 5, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not guards:
            raise OneShotError("model.guards: is empty; give at least one guard.")
        if chunk_words < 1:
            raise OneShotError(f"model.chunk_words must be at least 1, not {chunk_words}.")
        self.guards = {f"guard {n}": guard for n, guard in enumerate(guards, 1)}
        self.chunk_words = chunk_words

    def models(self) -> dict[str, str]:
        """Return the guards."""
        return {part: guard.name for part, guard in self.guards.items()}

    def settings(self) -> dict[str, Any]:
        """Return what beside the guards' weights decides the scores."""
        guards = [guard.settings() for guard in self.guards.values()]
        return {"guards": guards, "chunk_words": self.chunk_words}

    def row_text(self, index: int) -> str:
        """Return a hash of the row's text, which guards read with tokens of their own."""
        return self.conversations[index].digest()

    def load_part(self, part: str) -> None:
        """Load a guard in place of the one before."""
        for guard in self.guards.values():
            guard.unload()
        self.guards[part].load(self.device)

    def annotate(self, part: str, indices: Sequence[int]) -> list[Numbers]:
        """Return a guard's scores of rows."""
        own = [beginnings(self.conversations[i], self.chunk_words) for i in indices]
        values = self.guards[part].safety([each for row in own for each in row])
        return [
            {VALUES: each} for each in torch.split(torch.tensor(values), [len(row) for row in own])
        ]

    def joined(self, parts: dict[str, Numbers], index: int) -> Numbers:
        """Return the mean over the guards, and where each beginning ends in the row."""
        row, conversation = self.rows[index], self.conversations[index]
        numbers = {VALUES: mean_safety([own[VALUES] for own in parts.values()])}
        for name, exact in (("exact", True), ("released", False)):
            ends = chunk_ends(self.tokenizer, conversation, row, self.chunk_words, exact)
            numbers[name] = torch.tensor(ends)
        return numbers


def beginnings(conversation: Conversation, chunk_words: int) -> list[Beginning]:
    """Return the beginnings of all answers of a row that are learned, words joined by one blank."""
    result = []
    for number, turn in enumerate(conversation.messages):
        if turn.learned:
            words, before = turn.content.split(), conversation.messages[:number]
            for count in prefix_word_counts(len(words), chunk_words):
                text = " ".join(words[:count])
                result.append(Beginning(before, text, turn.content, conversation.origin))
    return result


def chunk_ends(
    tokenizer: Any, conversation: Conversation, row: Encoded, chunk_words: int, exact: bool
) -> list[int]:
    """Return behind which token of a row each beginning of its answers ends.

    Args:
        tokenizer: The tokenizer of the model that is trained.
        conversation: The row.
        row: Its tokens, perhaps truncated.
        chunk_words: See `StarScores`.
        exact: Where the texts begin to differ: behind the last token of the beginning. Otherwise
            the number of tokens of the beginning with its end of turn, as in the release.
    """
    ends = []
    for number, turn in enumerate(conversation.messages):
        if not turn.learned:
            continue
        places = [word.end() for word in re.finditer(r"\S+", turn.content)]
        for count in prefix_word_counts(len(places), chunk_words):
            own = turn.content[: places[count - 1]] if count < len(places) else turn.content
            text = own if exact else " ".join(turn.content.split()[:count])
            before = tuple(
                replace(m, weight=0) if m.learned else m for m in conversation.messages[:number]
            )
            part = replace(conversation, messages=(*before, Message("assistant", text)))
            ids = encode_conversation(tokenizer, part).input_ids
            pairs = zip(ids, row.input_ids, strict=False)
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
            ends.append(same if exact else len(ids))
    return list(accumulate(ends, max))
