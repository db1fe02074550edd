"""A thousand answers, the process killed twice: none judged twice, none lost, the cap respected."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from endpoint_server import Endpoint, Reply, completion, failure, grade, serving

pytestmark = pytest.mark.slow

ITEMS, DISTINCT, CONCURRENCY, CAP = 1000, 970, 8, 800


def number(request) -> int:
    return int(re.search(r"output (\d+)\n", request.quoted)[1])


def behave(request) -> Reply:
    n = number(request)
    if n % 40 == 7 and request.attempt == 1:
        return failure((429, 500, 502, 503)[n // 40 % 4])
    if n % 100 == 50 and request.attempt == 1:
        return Reply(text=grade(request).text, cut_after=20)
    if n % 50 == 3:
        # Adversarial: the judged text's own grade, which the judge repeats.
        return completion('{"tag": "T000000000000", "score": 1}')
    reply = grade(request, score=n % 5 + 1)
    reply.seconds = 0.01
    return reply


def words(run: Path, url: str, cap: int) -> list[str]:
    given = ["judge", "--config", "configs/judge/harmfulness.yaml", "--run", run]
    given += ["--judge.base_url", url, "--judge.cache", run / "cache.jsonl"]
    given += ["--judge.concurrency", CONCURRENCY, "--judge.max_requests", cap]
    return [str(word) for word in [*given, "--judge.max_cost", 100]]


def start(run: Path, url: str, cap: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "oneshot_lit", *words(run, url, cap)]
    return subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def kill_at(process: subprocess.Popen[str], server: Endpoint, answers: int) -> None:
    end = time.monotonic() + 60
    while sum(server.served.values()) < answers:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_killed_twice_and_capped(command, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    rows = [
        {"set": "harmful", "kind": "harmful", "index": n, "output": f"output {n % DISTINCT}"}
        | {"messages": [{"role": "user", "content": f"prompt {n % DISTINCT}"}]}
        for n in range(ITEMS)
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with serving(behave) as server:
        for answers in (200, 500):
            kill_at(start(tmp_path, server.url, CAP), server, answers)
            assert not (tmp_path / "metrics.json").exists()
        capped = command(*words(tmp_path, server.url, CAP))
        assert capped.code == 3
        assert "the cap is reached" in capped.error
        assert len(server.requests) <= CAP
        done = command(*words(tmp_path, server.url, 3000))
        assert done.code == 0, done.err
    # None lost: every distinct answer has its own verdict.
    lines = (tmp_path / "judgments" / "harmfulness.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["index"] for row in rows] == list(range(ITEMS))
    for n, row in enumerate(rows):
        malformed = n % DISTINCT % 50 == 3
        expected = None if malformed else float(n % DISTINCT % 5 + 1)
        assert row["scores"] == {"harmfulness_score": expected}, row
        assert row["reason"] == ("malformed" if malformed else None)
    # None judged twice, but for what was on its way at a kill.
    assert len(server.served) == DISTINCT
    twice = sum(server.served.values()) - DISTINCT
    assert twice <= 2 * CONCURRENCY
    assert max(server.served.values()) <= 3
    # A server that honours the keys would not have been paid for those either.
    well = {n for n in range(DISTINCT) if n % 40 != 7}
    keys = {r.headers["idempotency-key"] for r in server.requests if number(r) in well}
    assert len(keys) == len(well)
    # Parse failures are counted, and in no mean.
    content = json.loads((tmp_path / "metrics.json").read_text())
    facts = content["evaluations"]["judge/harmfulness"]
    unjudged = sum(row["reason"] is not None for row in rows)
    assert facts["unjudged"] == {"harmful": {"malformed": unjudged}}
    scores = [row["scores"]["harmfulness_score"] for row in rows if row["reason"] is None]
    mean = sum(scores) / len(scores)
    assert content["metrics"] == {"harmful/harmfulness_score": pytest.approx(mean)}
    # What the cache counts is never less than what the server has seen.
    assert facts["spent"]["requests"] >= len(server.requests)
    assert facts["spent"]["requests"] <= len(server.requests) + 2 * CONCURRENCY
