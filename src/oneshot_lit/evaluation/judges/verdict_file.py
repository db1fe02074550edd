"""`VerdictFile`: verdicts and what they cost, each on disk as soon as it is known.

It holds hashes, scores, reasons and counts; no prompt, no answer, no key.
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Verdict
from oneshot_lit.io.files import name_full_disk


class SpendingCapError(OneShotError):
    """A cap on requests or cost is reached; what was judged is kept."""

    code = 3


class VerdictFile:
    """A file that is only appended to, so that a killed process loses nothing that it holds.

    Args:
        path: The file; made, with its folder, if there is none.
        max_requests: Cap on the requests.
        max_cost: Cap on what they cost.

    Attributes:
        verdicts: Key -> verdict.
        requests: Requests of all runs that name the file.
        cost: What they cost.
    """

    def __init__(
        self, path: str | Path, max_requests: int | None = None, max_cost: float | None = None
    ) -> None:
        self.path = Path(path).expanduser()
        self.max_requests, self.max_cost = max_requests, max_cost
        self.verdicts: dict[str, Verdict] = {}
        self.requests, self.cost = 0, 0.0

    def load(self) -> None:
        """Read the file, and make its folder if there is none."""
        self.verdicts, self.requests, self.cost = {}, 0, 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        exists = self.path.exists()
        text = self.path.read_text(encoding="utf-8", errors="replace") if exists else ""
        for line in text.split("\n"):
            # A kill may have left half a line.
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                self.requests += row["requests"]
                self.cost += row["cost"]
                if row["key"] is not None:
                    self.verdicts[row["key"]] = Verdict.from_dict(row)

    def reserve(self, most: float) -> None:
        """Count a request, before it is sent, with the most that it may cost.

        What a killed process has reserved stays counted, so the caps hold in any case.

        Raises:
            SpendingCapError: if a cap would be exceeded.
        """
        reached = ""
        if self.max_requests is not None and self.requests >= self.max_requests:
            reached = f"judge.max_requests: the cap is reached ({self.requests} requests"
        elif self.max_cost is not None and self.cost + most > self.max_cost:
            reached = f"judge.max_cost: the cap is reached ({self.cost:.6g} spent"
        if reached:
            raise SpendingCapError(
                f"{reached}, counted over all runs with {self.path}); every verdict so far is kept "
                "there: raise the cap and run the same command again."
            )
        self.add(1, most)

    def keep(self, key: str, verdict: Verdict, cost: float = 0.0) -> None:
        """Append a verdict and a change of what was spent, both or neither."""
        self.add(cost=cost, key=key, **verdict.as_dict())
        self.verdicts[key] = verdict

    def add(self, requests: int = 0, cost: float = 0.0, **verdict: Any) -> None:
        """Append a change of what was spent."""
        row = {"key": None, "requests": requests, "cost": cost, **verdict}
        try:
            with self.path.open("a", encoding="utf-8") as file:
                # The line end comes first, so that no row continues half a line.
                file.write(f"\n{json.dumps(row)}")
        except OSError as error:
            name_full_disk(error, self.path)
            raise
        self.requests += requests
        self.cost += cost
