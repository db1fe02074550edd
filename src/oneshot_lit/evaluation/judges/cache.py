"""`VerdictCache`: verdicts and what they cost, on disk as soon as they are there.

Plain text and whole numbers in SQLite, so nothing is ever unpickled; no prompt, no answer, no key.
Everything that one reply changes is written in one transaction, before the next step is taken.
"""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Verdict
from oneshot_lit.io.machine_errors import full_disk

# Prices are dollars for a million tokens; costs are whole billionths, which add up exactly.
NANOS = 1_000_000_000
_REQUESTS, _COST = "spent/requests", "spent/cost_nanos"


@dataclass(frozen=True)
class Paid:
    """A verdict with the tokens that it took (None where the server did not say) and its cost."""

    verdict: Verdict
    prompt_tokens: int | None
    completion_tokens: int | None
    cost_nanos: int


class VerdictCache:
    """A folder that remembers verdicts and spending over all runs that name it.

    Several processes may use it at once; the caps hold for all of them together.

    Args:
        folder: The folder; made if there is none.
        max_requests: No request beyond this many is begun, counted over all runs.
        max_cost: As well, in the currency of the prices.
    """

    def __init__(
        self, folder: str, max_requests: int | None = None, max_cost: float | None = None
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.max_requests = max_requests
        self.max_cost_nanos = None if max_cost is None else int(max_cost * NANOS)
        self._owner = {"token": uuid.uuid4().hex, "pid": os.getpid(), "host": platform.node()}
        with self._readable():
            self._cache = _open(self.folder)
            self.spent()

    def get(self, key: str, metrics: Sequence[str]) -> Paid | None:
        """Return what is known for a key."""
        with self._readable():
            text = self._cache.get(key)
            if text is None:
                return None
            row = json.loads(text)
            counts = [row["prompt_tokens"], row["completion_tokens"], row["cost_nanos"]]
            if any(type(count) not in (int, type(None)) for count in counts):
                raise ValueError("no counts")
            return Paid(Verdict.from_dict(row, metrics), counts[0], counts[1], int(counts[2]))

    def spent(self) -> tuple[int, int]:
        """Return the requests begun and the cost in billionths, of all runs."""
        with self._readable():
            return self._count(_REQUESTS), self._count(_COST)

    def reserve(self, cost_nanos: int) -> bool:
        """Count a request and the most that it may cost before it is sent; False if a cap forbids.

        A process that is killed leaves its reservations counted: the cap errs to the safe side.
        """
        with self._readable(), self._cache.transact():
            requests, cost = self.spent()
            if self.max_requests is not None and requests + 1 > self.max_requests:
                return False
            if self.max_cost_nanos is not None and cost + cost_nanos > self.max_cost_nanos:
                return False
            self._cache.set(_REQUESTS, requests + 1)
            self._cache.set(_COST, cost + cost_nanos)
            return True

    def claim(self, key: str, seconds: float) -> bool:
        """Take a key as this process's to ask about; False while another one is asking.

        Also False if a verdict has come meanwhile, for the caller to look it up. A claim ends with
        `keep` or `release`, with its process on this machine, and else after `seconds`.
        """
        with self._readable(), self._cache.transact():
            if self._cache.get(key) is not None:
                return False
            text = self._cache.get(f"claims/{key}")
            if text is not None and _holds(json.loads(text), self._owner):
                return False
            mine = {**self._owner, "until": time.time() + seconds}
            self._cache.set(f"claims/{key}", json.dumps(mine))
            return True

    def release(self, key: str) -> None:
        """Give a claim of this process back, if it has one."""
        with self._readable(), self._cache.transact():
            text = self._cache.get(f"claims/{key}")
            if text is not None and json.loads(text)["token"] == self._owner["token"]:
                self._cache.delete(f"claims/{key}")

    def settle(self, reserved_nanos: int, cost_nanos: int, *, sent: bool = True) -> None:
        """Replace a reservation by what the request cost; give it back if it was never sent."""
        with self._readable(), self._cache.transact():
            requests, cost = self.spent()
            self._cache.set(_COST, max(0, cost - reserved_nanos + cost_nanos))
            if not sent:
                self._cache.set(_REQUESTS, max(0, requests - 1))

    def keep(self, key: str, paid: Paid, reserved_nanos: int) -> None:
        """Write a verdict, settle its reservation and end its claim, all or none."""
        counts = {
            "prompt_tokens": paid.prompt_tokens,
            "completion_tokens": paid.completion_tokens,
            "cost_nanos": paid.cost_nanos,
        }
        text = json.dumps(paid.verdict.as_dict() | counts)
        with self._readable(), self._cache.transact():
            self._cache.set(key, text)
            self._cache.delete(f"claims/{key}")
            self.settle(reserved_nanos, paid.cost_nanos)

    def failures(self, key: str) -> int:
        """Return how many requests for a key are known to have failed, in all runs."""
        with self._readable():
            return self._count(f"failures/{key}")

    def add_failure(self, key: str) -> None:
        """Count a request that is known to have failed."""
        with self._readable(), self._cache.transact():
            self._cache.set(f"failures/{key}", self.failures(key) + 1)

    def close(self) -> None:
        """Close the files."""
        self._cache.close()

    def _count(self, key: str) -> int:
        value = self._cache.get(key, 0)
        if type(value) is not int or value < 0:
            raise ValueError("no count")
        return value

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Name the folder in every error."""
        from diskcache import Timeout

        refused = (sqlite3.Error, Timeout, OSError, ValueError, TypeError, KeyError, AttributeError)
        try:
            yield
        except refused as error:
            if (line := full_disk(error, self.folder)) is not None:
                raise OneShotError(line) from error
            raise OneShotError(
                f"{self.folder}: judge.cache: cannot be read or written as a cache of verdicts "
                f"({type(error).__name__}); remove it, or name another folder."
            ) from error


def _holds(claim: Any, me: dict[str, Any]) -> bool:
    """Whether another process holds a claim: alive, as far as can be known, and not too long."""
    if claim["token"] == me["token"] or not time.time() < claim["until"]:
        return False
    if claim["host"] != me["host"]:
        return True
    try:
        os.kill(claim["pid"], 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _open(folder: Path) -> Any:
    import diskcache

    class PlainDisk(diskcache.Disk):  # type: ignore[misc, unused-ignore]
        """Texts and numbers within the database; a pickle, or a file beside it, is refused."""

        def put(self, key: Any) -> Any:
            if type(key) is not str:
                raise TypeError("a key must be text")
            return super().put(key)

        def get(self, key: Any, raw: Any) -> Any:
            if not raw:
                raise ValueError("a pickled key")
            return super().get(key, raw)

        def store(self, value: Any, read: Any, key: Any = None) -> Any:
            if type(value) not in (str, int) or read:
                raise TypeError("a value must be text or a whole number")
            return 0, diskcache.core.MODE_RAW, None, value

        def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> Any:
            if mode != diskcache.core.MODE_RAW or filename is not None:
                raise ValueError("a pickled or outer value")
            return super().fetch(mode, None, value, False)

    # Nothing that was paid for is ever thrown away to make room.
    return diskcache.Cache(
        str(folder), timeout=60, disk=PlainDisk, eviction_policy="none", cull_limit=0
    )
