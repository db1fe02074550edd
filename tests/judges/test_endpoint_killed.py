"""A thousand answers, the process killed twice: none judged twice, none lost, the cap respected."""

from __future__ import annotations

import json
import os
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


def start(run: Path, url: str, cap: int) -> subprocess.Popen[str]:
    words = ["judge", "--config", "configs/judge/harmfulness.yaml", "--run", run]
    words += ["--judge.base_url", url, "--judge.cache", run / "cache", "--judge.longest_wait", "2"]
    words += ["--judge.concurrency", CONCURRENCY, "--judge.max_requests", cap]
    words += ["--judge.max_cost", 100]
    environment = os.environ | {"OPENAI_API_KEY": "k", "no_proxy": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-m", "oneshot_lit", *map(str, words)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def kill_at(process: subprocess.Popen[str], server: Endpoint, answers: int) -> None:
    end = time.monotonic() + 60
    while sum(server.served.values()) < answers:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("honour_keys", [False, True], ids=["plain", "honours_keys"])
def test_killed_twice_and_capped(tmp_path: Path, honour_keys: bool) -> None:
    items, distinct = (ITEMS, DISTINCT) if not honour_keys else (120, 120)
    cap, kills = (CAP, (200, 500)) if not honour_keys else (100, (30, 60))
    rows = [
        {"set": "harmful", "kind": "harmful", "index": n, "output": f"output {n % distinct}"}
        | {"messages": [{"role": "user", "content": f"prompt {n % distinct}"}]}
        for n in range(items)
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    with serving(behave, honour_keys=honour_keys) as server:
        for answers in kills:
            kill_at(start(tmp_path, server.url, cap), server, answers)
            assert not (tmp_path / "metrics.json").exists()
        out, err = start(tmp_path, server.url, cap).communicate(timeout=90)
        assert "the cap is reached" in err, out + err
        assert len(server.requests) <= cap
        last = start(tmp_path, server.url, 3000)
        out, err = last.communicate(timeout=90)
        assert last.returncode == 0, err
    # None lost: every distinct answer has its own verdict.
    lines = (tmp_path / "judgments" / "harmfulness.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert [row["index"] for row in found] == list(range(items))
    for n, row in enumerate(found):
        malformed = n % distinct % 50 == 3
        expected = None if malformed else float(n % distinct % 5 + 1)
        assert row["scores"] == {"harmfulness_score": expected}, row
        assert row["reason"] == ("malformed" if malformed else None)
    # None judged twice, but for what was on its way at a kill.
    assert len(server.served) == distinct
    twice = sum(server.served.values()) - distinct
    assert twice <= (0 if honour_keys else 2 * CONCURRENCY)
    assert max(server.served.values()) <= 3
    # Parse failures are counted, and in no mean.
    content = json.loads((tmp_path / "metrics.json").read_text())
    facts = content["evaluations"]["judge/harmfulness"]
    unjudged = sum(row["reason"] is not None for row in found)
    assert facts["unjudged"] == {"harmful": {"malformed": unjudged}}
    scores = [row["scores"]["harmfulness_score"] for row in found if row["reason"] is None]
    mean = sum(scores) / len(scores)
    assert content["metrics"] == {"harmful/harmfulness_score": pytest.approx(mean)}
    # What the cache counts is never less than what the server has seen.
    assert facts["spent"]["requests"] >= len(server.requests)
    assert facts["spent"]["requests"] <= len(server.requests) + 2 * CONCURRENCY
