"""`OutcomeCache`: the outcome of each candidate's patch, on disk as soon as it is known."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError

CANDIDATES_FILE = "candidates.jsonl"


@dataclass(frozen=True)
class CandidateOutcome:
    """The outcome of patching with one candidate.

    Attributes:
        digest: Hash of the candidate's tokens and loss mask.
        score: The development score; 0 is best.
        scores: ``<set>/<metric>`` -> value on the development prompts.
        loss: The candidate's loss at the last step, in nats; None if it is not finite.
        seconds: How long patching and measuring took.
    """

    digest: str
    score: float
    scores: dict[str, float]
    loss: float | None
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class OutcomeCache:
    """``<root>/candidates.jsonl``: one row an outcome, of this and of earlier settings.

    Args:
        root: The run's folder.
        settings: A hash of everything but the candidate that decides an outcome.
    """

    def __init__(self, root: Path, settings: str) -> None:
        self.file, self.settings = root / CANDIDATES_FILE, settings

    def read(self) -> dict[str, CandidateOutcome]:
        """Return digest -> outcome of the same settings.

        Raises:
            OneShotError: for a row that is not an outcome. A last row that a kill has truncated is
                ignored.
        """
        if not self.file.is_file():
            return {}
        outcomes = {}
        lines = self.file.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                row = json.loads(line)
                outcome = CandidateOutcome(**row["outcome"])
                settings = row["settings"]
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                raise OneShotError(
                    f"{self.file} row {number}: is no outcome of a candidate; remove the row."
                ) from error
            if settings == self.settings:
                outcomes[outcome.digest] = outcome
        return outcomes

    def add(self, outcome: CandidateOutcome) -> None:
        """Append an outcome."""
        text = json.dumps({"settings": self.settings, "outcome": outcome.as_dict()}) + "\n"
        self.file.parent.mkdir(parents=True, exist_ok=True)
        whole = self.file.read_bytes() if self.file.is_file() else b""
        with self.file.open("ab") as file:
            # Remove a last row that a kill has truncated: the new one would be appended to it.
            file.truncate(whole.rfind(b"\n") + 1)
            file.write(text.encode())
