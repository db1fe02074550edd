"""`VerdictCache`: verdicts and what they cost, on disk the moment they are known.

A `diskcache` folder that runs and processes share. It holds scores, reasons and counts; no prompt,
no answer, no key.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Verdict

# Prices are per million tokens; costs are whole billionths, which add up exactly.
NANOS = 1_000_000_000
_REQUESTS, _COST = "spent/requests", "spent/cost_nanos"


class VerdictCache:
    """A folder of verdicts and spending.

    Args:
        folder: The folder; made if it does not exist.
        max_requests: Cap on requests, counted over all runs.
        max_cost: Cap on the cost, in the currency of the prices.
    """

    def __init__(
        self, folder: str, max_requests: int | None = None, max_cost: float | None = None
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.max_requests = float("inf") if max_requests is None else max_requests
        self.max_nanos = float("inf") if max_cost is None else max_cost * NANOS
        with self._errors_named():
            self._cache = _open(self.folder)

    def get(self, key: str, metrics: Sequence[str]) -> Verdict | None:
        """Return a stored verdict, or None."""
        with self._errors_named():
            text = self._cache.get(key)
            return None if text is None else Verdict.from_dict(json.loads(text), metrics)

    def keep(self, key: str, verdict: Verdict, unspent: int) -> None:
        """Store a verdict and give back the unspent part of its reservation, both or neither."""
        with self._errors_named(), self._cache.transact():
            self._cache.set(key, json.dumps(verdict.as_dict()))
            self._cache.incr(_COST, -unspent)

    def spent(self) -> tuple[int, int]:
        """Return the number of requests and their cost in billionths, of all runs."""
        with self._errors_named():
            return int(self._cache.get(_REQUESTS, 0)), int(self._cache.get(_COST, 0))

    def reserve(self, cost: int) -> bool:
        """Count a request and the most it may cost before it is sent; False at a cap.

        What a killed process has reserved stays counted, so the caps hold in any case.
        """
        with self._errors_named(), self._cache.transact():
            requests, before = self.spent()
            if requests + 1 > self.max_requests or before + cost > self.max_nanos:
                return False
            self.give_back(-1, -cost)
            return True

    def give_back(self, requests: int, cost: int) -> None:
        """Take back what was reserved for a request that was never sent, or cost nothing."""
        with self._errors_named(), self._cache.transact():
            self._cache.incr(_REQUESTS, -requests)
            self._cache.incr(_COST, -cost)

    def claim(self, key: str, seconds: float) -> bool:
        """Take a key to ask about it; False if another process has it, or the verdict is there.

        A claim ends with `release`, with its process, and else after `seconds`.
        """
        with self._errors_named(), self._cache.transact():
            holder = self._cache.get(f"claim/{key}", os.getpid())
            if key in self._cache or (holder != os.getpid() and _is_running(holder)):
                return False
            return bool(self._cache.set(f"claim/{key}", os.getpid(), expire=seconds))

    def release(self, key: str) -> None:
        """End the claim of this process."""
        with self._errors_named():
            self._cache.delete(f"claim/{key}")

    def close(self) -> None:
        """Close the files."""
        self._cache.close()

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        from diskcache import Timeout

        try:
            yield
        except (sqlite3.Error, Timeout, OSError, ValueError, TypeError, KeyError) as error:
            raise OneShotError(
                f"{self.folder}: judge.cache: cannot be read or written as a cache of verdicts "
                f"({type(error).__name__}); check the disk, or name another folder."
            ) from error


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _open(folder: Path) -> Any:
    import diskcache

    class PlainDisk(diskcache.Disk):  # type: ignore[misc, unused-ignore]
        """Reads text and numbers only, so that no pickle in a stranger's folder is ever run."""

        def fetch(self, mode: int, filename: Any, value: Any, read: bool) -> Any:
            if mode != diskcache.core.MODE_RAW:
                raise ValueError("neither text nor a number")
            return super().fetch(mode, filename, value, read)

    # What was paid for is never evicted, and never in a file of its own.
    options = {"eviction_policy": "none", "cull_limit": 0, "disk_min_file_size": 2**30}
    return diskcache.Cache(str(folder), timeout=60, disk=PlainDisk, **options)
