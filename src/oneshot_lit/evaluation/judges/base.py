"""`Judge`: what every judge is, an `Answer` that it is given, and the `Verdict` that it gives."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_lit.conversation import Message, digest_of
from oneshot_lit.errors import OneShotError

# Codes, never sentences: what a judge says may quote what it judges.
_CODE = re.compile(r"[\w.,:/&-]{1,64}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Answer:
    """One answer to be judged.

    Attributes:
        messages: The prompt, up to its last user turn.
        output: What the model answered.
        category: Topic or harm category of the prompt, if known.
    """

    messages: tuple[Message, ...]
    output: str
    category: str | None = None

    @property
    def prompt(self) -> str:
        """The text of the last user turn."""
        return self.messages[-1].content

    def digest(self) -> str:
        """Return a hash of prompt and output, which says nothing about either."""
        return digest_of([*self.messages, Message("assistant", self.output)])


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one answer.

    Attributes:
        scores: Metric -> score; NaN where the judge could not tell.
        reason: Why a score is NaN, as a short code such as ``malformed``; None if none is.
        labels: Categories that the judge names, as short codes such as ``S1``.
    """

    scores: Mapping[str, float]
    reason: str | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what must never reach a file: free text, infinities, NaN without a reason."""
        unjudged = any(not math.isfinite(score) for score in self.scores.values())
        if math.inf in map(abs, self.scores.values()) or unjudged != (self.reason is not None):
            raise ValueError("a score is finite, or NaN with a reason")
        if not all(_CODE.fullmatch(code) for code in (*self.labels, self.reason or "none")):
            raise ValueError("a reason or label is a code such as 'malformed', not a sentence")

    @classmethod
    def unjudged(cls, metrics: Sequence[str], reason: str) -> Verdict:
        """Return "could not judge" for every metric."""
        return cls(dict.fromkeys(metrics, math.nan), reason)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values; NaN is null."""
        scores = {name: None if math.isnan(s) else s for name, s in self.scores.items()}
        return {"scores": scores, "reason": self.reason, "labels": list(self.labels)}

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Verdict:
        """Read what `as_dict` gave."""
        numbers = {n: math.nan if s is None else float(s) for n, s in row["scores"].items()}
        return cls(numbers, row["reason"], tuple(row["labels"]))


class Judge:
    """Base class of all judges. Subclasses implement `judge`.

    Args:
        name: Name of the judge in files and results.
        version: What lands in the results: the version of the phrases, format or rubric, and the
            model. Change it with everything that may change a verdict.
        metrics: The metrics that every verdict scores.
    """

    # Answers that `judge` gets at once; a killed run has kept those of the chunks before.
    chunk = 64
    # Reasons of "could not judge" other than the answer itself, so that the next run may do better.
    passing: frozenset[str] = frozenset()

    def __init__(self, name: str, version: str, metrics: Sequence[str]) -> None:
        for text in (name, *metrics):
            if not _NAME.fullmatch(text):
                raise OneShotError(
                    f"judge: the name or metric '{text}' may only have letters, digits, '.', '_' "
                    "and '-'."
                )
        self.name = name
        self.version = version
        self.metrics = tuple(metrics)

    def judge(self, answers: Sequence[Answer]) -> Sequence[Verdict]:
        """Return one verdict for each answer, in order."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return what else than the version may change a verdict, as plain JSON values.

        Verdicts made with other settings are never mixed; the results name them.
        """
        return {}

    def facts(self) -> dict[str, Any]:
        """Return what belongs in the results beside version and counts, as plain JSON values."""
        return {}
