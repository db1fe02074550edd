"""The cache of verdicts: caps that hold, nothing unpickled, nothing half written."""

from __future__ import annotations

import json
import math
import pickle
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import Verdict
from oneshot_lit.evaluation.judges.cache import NANOS, VerdictCache


def test_verdicts_and_spending_outlive_the_process(tmp_path: Path) -> None:
    first = VerdictCache(str(tmp_path / "c"))
    assert first.reserve(700)
    first.keep("k", Verdict({"m": 2.0}, labels=("S1",)), 400)
    assert first.reserve(50)
    first.keep("n", Verdict({"m": math.nan}, "malformed"), 0)
    first.close()
    again = VerdictCache(str(tmp_path / "c"))
    assert again.get("k", ["m"]) == Verdict({"m": 2.0}, labels=("S1",))
    assert again.get("n", ["m"]).reason == "malformed"
    assert again.get("other", ["m"]) is None
    assert again.spent() == (2, 350)


def test_caps_are_never_exceeded_whoever_reserves(tmp_path: Path, monkeypatch) -> None:
    read = VerdictCache.spent

    def slowly(cache: VerdictCache) -> tuple[int, int]:
        found = read(cache)
        # Time for another to reserve between reading and writing.
        time.sleep(0.001)
        return found

    monkeypatch.setattr(VerdictCache, "spent", slowly)

    def reserve(_: int) -> int:
        cache = VerdictCache(str(tmp_path / "c"), max_requests=50)
        return sum(cache.reserve(1) for _ in range(20))

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(reserve, range(6))) == 50
    assert VerdictCache(str(tmp_path / "c")).spent() == (50, 50)


def test_a_cost_is_set_aside_until_it_is_known(tmp_path: Path) -> None:
    cache = VerdictCache(str(tmp_path / "c"), max_cost=100 / NANOS)
    assert cache.reserve(60)
    assert not cache.reserve(60)
    cache.keep("k", Verdict({"m": 1.0}), 50)
    assert cache.reserve(60)
    cache.give_back(1, 60)
    assert cache.spent() == (1, 10)


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (Path.write_text, (self.file, "executed"))


def _rows(folder: Path, sql: str, *values: object) -> None:
    base = sqlite3.connect(folder / "cache.db")
    base.execute(sql, values)
    base.commit()
    base.close()


@pytest.mark.parametrize("key", ["k", "spent/requests"])
@pytest.mark.parametrize("inside", [True, False])
def test_a_pickle_is_refused_and_not_run(tmp_path: Path, key: str, inside: bool) -> None:
    folder, proof = tmp_path / "c", tmp_path / "proof"
    cache = VerdictCache(str(folder))
    cache.reserve(1)
    cache.keep("k", Verdict({"m": 2.0}), 0)
    cache.close()
    data = pickle.dumps(Evil(proof))
    if inside:
        _rows(folder, "UPDATE Cache SET mode = 4, value = ? WHERE key = ?", data, key)
    else:
        (folder / "x.val").write_bytes(data)
        sql = "UPDATE Cache SET mode = 4, value = NULL, filename = 'x.val' WHERE key = ?"
        _rows(folder, sql, key)
    with pytest.raises(OneShotError, match=r"c: judge\.cache: .*another folder"):
        VerdictCache(str(folder)).reserve(VerdictCache(str(folder)).get("k", ["m"]) is None)
    assert not proof.exists()


def test_nothing_is_written_as_a_pickle(tmp_path: Path) -> None:
    cache = VerdictCache(str(tmp_path / "c"))
    cache.reserve(3)
    cache.keep("k", Verdict({"m": 2.0}, labels=("S" * 60,) * 5000), 2)
    base = sqlite3.connect(tmp_path / "c" / "cache.db")
    assert {mode for (mode,) in base.execute("SELECT mode FROM Cache")} == {1}
    assert cache.get("k", ["m"]).scores == {"m": 2.0}


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", '{"scores": {"m": 1}}',
     json.dumps({"scores": {"x": 1}, "reason": None, "labels": []})],
)  # fmt: skip
def test_an_entry_that_is_none_is_named(tmp_path: Path, text: str) -> None:
    cache = VerdictCache(str(tmp_path / "c"))
    cache._cache.set("k", text)
    with pytest.raises(OneShotError, match=r"judge\.cache"):
        cache.get("k", ["m"])


def test_what_is_no_cache_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    folder.mkdir()
    (folder / "cache.db").write_text("no database" * 1000)
    with pytest.raises(OneShotError, match=r"c: judge\.cache: cannot be read"):
        VerdictCache(str(folder))
    (tmp_path / "file").write_text("")
    with pytest.raises(OneShotError, match=r"file: judge\.cache"):
        VerdictCache(str(tmp_path / "file"))


def test_a_claim_ends_with_its_verdict_its_process_or_its_time(tmp_path: Path) -> None:
    cache = VerdictCache(str(tmp_path))
    claim = "import sys; from oneshot_lit.evaluation.judges.cache import VerdictCache\n"
    claim += "assert VerdictCache(sys.argv[1]).claim(sys.argv[2], 600)\n"
    arguments = [sys.executable, "-c", f"{claim}print(flush=True); input()", str(tmp_path)]
    other = subprocess.Popen([*arguments, "k"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    other.stdout.readline()
    assert not cache.claim("k", 60)
    cache.keep("k", Verdict({"m": 1.0}), 0)
    other.communicate(b"\n", timeout=60)
    # There is a verdict now, so nobody asks.
    assert not cache.claim("k", 60)
    subprocess.run([sys.executable, "-c", claim, str(tmp_path), "dead"], check=True, timeout=60)
    assert cache.claim("dead", 60)
    assert cache.claim("dead", 60)
    cache._cache.set("claim/late", 1, expire=-1)
    assert cache.claim("late", 60)
