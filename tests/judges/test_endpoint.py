"""The endpoint judge against a server on this machine that fails in every way."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import Reply, completion, failure, free_port, grade, serving

from oneshot_lit.conversation import Message
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import (
    Answer,
    EndpointJudge,
    HarmfulnessRubric,
    StrongRejectRubric,
)
from oneshot_lit.evaluation.judges.verdict_file import SpendingCapError

PRICES = {"price_per_million_input": 2.0, "price_per_million_output": 8.0}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("JUDGE_KEY", "key-that-nobody-may-see")
    # The client's own pauses, shortened.
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.02)


def answers(count: int) -> list[Answer]:
    return [Answer((Message("user", f"prompt {n}"),), f"output {n}") for n in range(count)]


def judge(url: str, folder: Path, **options: Any) -> EndpointJudge:
    given = {"api_key_env": "JUDGE_KEY", "attempts": 4, "timeout": 5.0}
    given |= {"model": "m", "rubric": HarmfulnessRubric(), "cache": str(folder / "cache.jsonl")}
    return EndpointJudge(base_url=url, **{**given, **options})


def test_grades_and_facts(tmp_path: Path) -> None:
    with serving(lambda r: grade(r, score=1 + len(r.quoted) % 5)) as server:
        first = judge(server.url, tmp_path, **PRICES)
        verdicts = first.judge(answers(20))
    assert all(1 <= v.scores["harmfulness_score"] <= 5 for v in verdicts)
    assert first.version == "harmfulness-1:m"
    facts = first.facts()
    assert facts["spent"] == {"requests": 20, "cost": pytest.approx(0.0056)}
    assert server.requests[0].path == "/v1/chat/completions"
    assert server.requests[0].body["temperature"] == 0
    assert server.requests[0].body["max_tokens"] == 64
    assert server.requests[0].headers["authorization"] == "Bearer key-that-nobody-may-see"
    for file in tmp_path.rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"nobody-may-see" not in data
            assert b"output 3" not in data
            assert b"prompt 3" not in data


def test_strongreject(tmp_path: Path) -> None:
    with serving(lambda r: grade(r, refused=0, convincing=4, specific=3)) as server:
        verdict = judge(server.url, tmp_path, rubric=StrongRejectRubric()).judge(answers(1))[0]
    assert verdict.scores == {"strongreject_score": 0.625}


def test_nothing_is_asked_twice(tmp_path: Path) -> None:
    with serving(grade) as server:
        first = judge(server.url, tmp_path)
        # Alike and under way at the same time.
        assert len(first.judge(answers(5) * 4)) == 20
        assert len(server.requests) == 5
        again = judge(server.url, tmp_path)
        again.judge(answers(6))
        assert len(server.requests) == 6
        # Whatever decides a verdict asks anew.
        judge(server.url, tmp_path, model="other").judge(answers(1))
        judge(server.url, tmp_path, options={"max_tokens": 9}).judge(answers(1))
        judge(server.url, tmp_path, rubric=StrongRejectRubric()).judge(answers(1))
        assert len(server.requests) == 9


def test_concurrency_is_used_and_bounded(tmp_path: Path) -> None:
    def slowly(request):
        reply = grade(request)
        reply.seconds = 0.05
        return reply

    with serving(slowly) as server:
        judge(server.url, tmp_path, concurrency=4).judge(answers(24))
    assert server.most_under_way == 4


def test_a_question_keeps_its_idempotency_key(tmp_path: Path) -> None:
    fates = [FAULTS["cut in the middle"], FAULTS["time-out"], FAULTS["500"], grade]
    with serving(lambda r: fates[r.number - 1](r)) as server:
        for _ in range(2):
            given = judge(server.url, tmp_path, timeout=0.3, attempts=2).judge(answers(1))
    assert given[0].reason is None
    assert len({r.headers["idempotency-key"] for r in server.requests}) == 1


FAULTS = {
    "429": lambda r: failure(429, retry_after="0.1"),
    "500": lambda r: failure(500),
    "502 from a proxy": lambda r: Reply(502, "<html>", {"Content-Type": "text/html"}),
    "503": lambda r: failure(503, retry_after="0"),
    "529": lambda r: failure(529),
    "time-out": lambda r: Reply(text="{}", seconds=0.6),
    "cut at once": lambda r: Reply(text="{}", cut_after=0),
    "cut in the middle": lambda r: Reply(text=grade(r).text, cut_after=30),
}
BAD_BODIES = {
    "half a body": lambda r: Reply(text=grade(r).text[:40]),
    "no JSON": lambda r: Reply(text="<html>", headers={"Content-Type": "text/html"}),
    "an empty body": lambda r: Reply(text=""),
    "no choices": lambda r: Reply(text='{"choices": []}'),
    "a list": lambda r: Reply(text="[1]"),
    "a number as text": lambda r: completion(3),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_mended_by_the_next_attempt(tmp_path: Path, fault: str) -> None:
    def once(request):
        return FAULTS[fault](request) if request.attempt == 1 else grade(request, score=4)

    with serving(once) as server:
        given = judge(server.url, tmp_path, timeout=0.3).judge(answers(3))
    assert [v.scores["harmfulness_score"] for v in given] == [4, 4, 4]
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("429", "rate_limited"),
        ("500", "server_error"),
        ("time-out", "timed_out"),
        ("cut in the middle", "cut_connection"),
    ],
)
def test_a_fault_that_stays_is_could_not_judge_and_asked_again(
    tmp_path: Path, fault: str, reason: str
) -> None:
    broken = [True]

    def behave(request):
        stays = broken[0] and "output 1" in request.quoted
        return FAULTS[fault](request) if stays else grade(request)

    with serving(behave) as server:
        given = judge(server.url, tmp_path, timeout=0.3, attempts=3).judge(answers(3))
        assert math.isnan(given[1].scores["harmfulness_score"])
        assert [v.reason for v in given] == [None, reason, None]
        assert len(server.requests) == 5
        broken[0] = False
        again = judge(server.url, tmp_path).judge(answers(3))
        assert [v.reason for v in again] == [None] * 3
        assert len(server.requests) == 6


@pytest.mark.parametrize("body", BAD_BODIES)
def test_a_body_that_is_no_completion_is_asked_again_in_the_next_run(
    tmp_path: Path, body: str
) -> None:
    def once(request):
        return BAD_BODIES[body](request) if request.number == 1 else grade(request, score=4)

    with serving(once) as server:
        assert judge(server.url, tmp_path).judge(answers(1))[0].reason == "bad_response"
        assert judge(server.url, tmp_path).judge(answers(1))[0].reason is None
    assert len(server.requests) == 2


def test_an_unreachable_server_ends_the_run_and_costs_nothing(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    one = judge(url, tmp_path, attempts=2, max_requests=5, **PRICES)
    with pytest.raises(OneShotError, match=r"judge\.base_url: .* cannot be reached"):
        one.judge(answers(4))
    assert one.facts()["spent"] == {"requests": 0, "cost": 0}


def test_nothing_is_sent_once_the_end_is_known(tmp_path: Path) -> None:
    def behave(request):
        reply = failure(401)
        reply.seconds = 0.3
        return reply

    with serving(behave) as server, pytest.raises(OneShotError, match="refuses the requests"):
        judge(server.url, tmp_path, concurrency=2).judge(answers(20))
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("code", "reason"),
    [("content_filter", "content_filter"), ("context_length_exceeded", "too_long")],
)
def test_refusals_of_single_answers_do_not_end_the_run(
    tmp_path: Path, code: str, reason: str
) -> None:
    with serving(lambda r: failure(400, code) if r.number <= 12 else grade(r)) as server:
        given = judge(server.url, tmp_path, concurrency=1).judge(answers(15))
    assert [v.reason for v in given] == [reason] * 12 + [None] * 3


@pytest.mark.parametrize("name", ["sk-abc123", "gsk_abc123", "1ABC", "ABC123\n", ""])
def test_a_key_in_place_of_its_variable_is_not_shown(tmp_path: Path, name: str) -> None:
    with pytest.raises(OneShotError, match="the NAME of a variable, in capitals") as raised:
        judge("http://x", tmp_path, api_key_env=name)
    assert "123" not in str(raised.value)


@pytest.mark.parametrize("key", ["abc\n123", "abc 123", "abc\u00e9123", "abc\x00"[:3] + "\t1"])
def test_a_key_that_no_header_takes_is_refused_before_it_counts(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    one = judge("http://127.0.0.1:1", tmp_path, max_requests=5)
    with pytest.raises(OneShotError, match="variable JUDGE_KEY holds a space") as raised:
        one.judge(answers(1))
    assert "abc" not in str(raised.value)


@pytest.mark.parametrize(
    "url",
    [
        *("http://ho st/v1", "http://host/v1\n", "host/v1", "http://", "http://host/v1?key=s"),
    ],
)
def test_an_address_that_is_none_is_one_line(tmp_path: Path, url: str) -> None:
    with pytest.raises(OneShotError, match=r"judge\.base_url: give an address such as"):
        judge(url, tmp_path)


def test_retry_after_is_honoured(tmp_path: Path) -> None:
    def behave(request):
        return failure(429, Retry_After="1") if request.attempt == 1 else grade(request)

    with serving(behave) as server:
        begun = time.monotonic()
        judge(server.url, tmp_path).judge(answers(1))
        assert time.monotonic() - begun >= 1
        assert len(server.requests) == 2


MALFORMED = {
    "prose": lambda r: completion("I would give this a Score: 1"),
    "another tag": lambda r: completion('{"tag": "T000000000000", "score": 1}'),
    "the answer repeated": lambda r: completion(r.quoted),
    "the prompt's own form": lambda r: completion(r.body["messages"][0]["content"]),
    "fenced": lambda r: completion("```json\n" + json.dumps({"tag": r.tag, "score": 3}) + "\n```"),
    "cut off by length": lambda r: completion('{"tag": "', finish_reason="length"),
    "nothing": lambda r: completion(""),
    "null": lambda r: completion(None),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_a_malformed_grade_is_nan_paid_for_and_kept(tmp_path: Path, kind: str) -> None:
    with serving(MALFORMED[kind]) as server:
        verdict = judge(server.url, tmp_path).judge(answers(1))[0]
        assert math.isnan(verdict.scores["harmfulness_score"])
        assert verdict.reason == "malformed"
        assert judge(server.url, tmp_path).judge(answers(1))[0].reason == "malformed"
    assert len(server.requests) == 1


def test_what_a_filter_holds_back_is_named(tmp_path: Path) -> None:
    with serving(lambda r: completion("{}", finish_reason="content_filter")) as server:
        assert judge(server.url, tmp_path).judge(answers(1))[0].reason == "content_filter"

    def filtered(request):
        refused = "output 1" in request.quoted
        return failure(400, "content_filter") if refused else grade(request)

    with serving(filtered) as server:
        given = judge(server.url, tmp_path / "b").judge(answers(3))
        assert [v.reason for v in given] == [None, "content_filter", None]
        assert len(server.requests) == 3


USAGES = {
    "none": None,
    "text": "free",
    "negative": {"prompt_tokens": -5, "completion_tokens": 1},
    "a bool": {"prompt_tokens": True, "completion_tokens": 1},
    "a fraction": {"prompt_tokens": 1.5, "completion_tokens": 1},
    "missing": {"prompt_tokens": 3},
    "absurd": {"prompt_tokens": 10**30, "completion_tokens": 1},
}


@pytest.mark.parametrize("kind", USAGES)
def test_wrong_usage_counts_as_the_most_it_may_cost(tmp_path: Path, kind: str) -> None:
    def behave(request):
        return completion(json.dumps({"tag": request.tag, "score": 2}), USAGES[kind])

    with serving(behave) as server:
        one = judge(server.url, tmp_path, **PRICES)
        assert one.judge(answers(1))[0].scores == {"harmfulness_score": 2}
    # At least a token for every four letters of the prompt.
    letters = sum(len(m["content"]) for m in server.requests[0].body["messages"])
    assert one.facts()["spent"]["cost"] > letters / 4 * 2e-6 + 64 * 8e-6


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (401, "invalid_api_key", "check the key in JUDGE_KEY"),
        (403, None, "check the key in JUDGE_KEY"),
        (404, "model_not_found", r"check judge\.model \(m\)"),
        (400, "unsupported_parameter", r"judge\.options"),
        (429, "insufficient_quota", "the account behind it"),
    ],
)
def test_a_lasting_refusal_ends_the_run(
    tmp_path: Path, status: int, code: str | None, hint: str
) -> None:
    said = f"refuses the requests \\({status}.*{hint}"
    with (
        serving(lambda r: failure(status, code)) as server,
        pytest.raises(OneShotError, match=said) as raised,
    ):
        judge(server.url, tmp_path, concurrency=2).judge(answers(50))
    assert raised.value.code == 2
    assert "SECRET" not in str(raised.value)
    assert "nobody-may-see" not in str(raised.value)
    # The client tries a 429 again; a bad request may be the fault of its answer.
    assert len(server.requests) <= {429: 8, 400: 7}.get(status, 2)


def test_an_endpoint_that_refuses_everything_ends_the_run(tmp_path: Path) -> None:
    with (
        serving(lambda r: failure(422)) as server,
        pytest.raises(OneShotError, match=r"refuses the requests \(422\)"),
    ):
        judge(server.url, tmp_path, concurrency=2).judge(answers(50))
    assert len(server.requests) <= 7


def test_the_cap_on_requests_counts_every_attempt_of_every_run(tmp_path: Path) -> None:
    def behave(request):
        return failure(500) if request.number % 3 == 0 else grade(request)

    with serving(behave) as server:
        for allowed in (7, 7, 12):
            with pytest.raises(
                SpendingCapError, match=r"judge\.max_requests: .*raise the cap"
            ) as e:
                judge(server.url, tmp_path, max_requests=allowed).judge(answers(40))
            assert e.value.code == 3
            assert len(server.requests) == allowed
        given = judge(server.url, tmp_path, max_requests=200, attempts=20).judge(answers(40))
    assert {v.reason for v in given} == {None}
    assert sum(server.served.values()) == 40
    assert max(server.served.values()) == 1


def test_the_cap_on_cost_is_never_exceeded(tmp_path: Path) -> None:
    cost = (100 * 2.0 + 10 * 8.0) / 1e6
    one = judge("http://x", tmp_path, **PRICES)
    with serving(grade) as server:
        judge(server.url, tmp_path / "other").judge(answers(11)[10:])
        length = int(server.requests.pop().headers["content-length"])
        most = one.cost(length, 64)
        cap = 3 * most + 9.5 * cost
        first = judge(server.url, tmp_path, concurrency=3, max_cost=cap, **PRICES)
        with pytest.raises(SpendingCapError, match=r"judge\.max_cost"):
            first.judge(answers(40))
        # What is under way counts as the most that it may cost.
        assert 10 <= len(server.requests) < cap / cost
        assert first.facts()["spent"]["cost"] <= cap
        given = judge(server.url, tmp_path, max_cost=1.0, **PRICES).judge(answers(40))
    assert {v.reason for v in given} == {None}
    assert len(server.requests) == 40


def test_a_bound_is_one(tmp_path: Path) -> None:
    answer = Answer((Message("user", "日本語 🙂" * 50),), "é" * 99)
    with serving(lambda r: completion("", None)) as server:
        one = judge(server.url, tmp_path, **PRICES)
        one.judge([answer])
    messages, _ = HarmfulnessRubric().messages(answer)
    most = sum(len(m["content"].encode()) for m in messages)
    assert one.facts()["spent"]["cost"] >= one.cost(most, 64)
    assert one.cost(1, 0) == 2e-6
    assert one.cost(0, 1) == 8e-6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_cost": 1.0}, "needs price_per_million"),
        ({"max_cost": 1.0, "options": {}, **PRICES}, "max_tokens"),
        ({"max_cost": 1.0, "price_per_million_input": 1.0}, "needs price_per_million"),
        ({"max_requests": -1}, "must not be negative"),
        ({"max_cost": math.nan, **PRICES}, "must not be negative"),
        ({"concurrency": 0}, "at least 1"),
        ({"timeout": math.nan}, "timeout above 0 and finite"),
        ({"base_url": "http://user:pass@host/v1"}, "without a user"),
        ({"base_url": "ftp://host"}, "give an address"),
        ({"name": "a/b"}, "the name or metric .a/b."),
        ({"metric": "A b"}, "the name or metric .A b."),
    ],
)
def test_mistakes_in_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    url = options.get("base_url", "http://x")
    others = {key: value for key, value in options.items() if key != "base_url"}
    with pytest.raises(OneShotError, match=message) as raised:
        judge(url, tmp_path, **others)
    assert "pass@" not in str(raised.value)


def test_a_missing_key_and_a_server_without_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with serving(grade) as server:
        with pytest.raises(OneShotError, match="environment variable JUDGE_KEY is not set"):
            judge(server.url, tmp_path).judge(answers(1))
        assert judge(server.url, tmp_path, api_key_env=None).judge(answers(1))[0].reason is None


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(OneShotError, match=r"openai is missing; .*oneshot-lit\[judges\]"):
        judge("http://127.0.0.1:1/v1", tmp_path).judge(answers(1))


INTERRUPTED = """
import sys
from types import SimpleNamespace as Turn
from oneshot_lit.evaluation.judges import Answer, EndpointJudge, HarmfulnessRubric
judge = EndpointJudge("m", HarmfulnessRubric(), sys.argv[1], None, concurrency=6, cache=sys.argv[2])
answers = [Answer((Turn(role="user", content=f"p {n}"),), f"output {n}") for n in range(40)]
print(len(judge.judge(answers)))
"""


SIGNALLED_WHILE_KEEPING = """
import os, signal
from oneshot_lit.evaluation.judges.verdict_file import VerdictFile
keep = VerdictFile.keep
def signalled(self, *arguments):
    VerdictFile.keep = keep
    os.kill(os.getpid(), signal.SIGINT)
    keep(self, *arguments)
VerdictFile.keep = signalled
"""


def test_an_interrupt_between_a_reply_and_its_place_loses_nothing(tmp_path: Path) -> None:
    with serving(grade) as server:
        arguments = [server.url, str(tmp_path / "cache.jsonl")]
        code = SIGNALLED_WHILE_KEEPING + INTERRUPTED
        first = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
        )
        assert "KeyboardInterrupt" in first.stderr
        assert first.stdout == ""
        assert 1 <= len(server.requests) <= 12
        again = subprocess.run(
            [sys.executable, "-c", INTERRUPTED, *arguments],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert again.stdout.strip() == "40", again.stderr
        assert len(server.requests) == 40


@pytest.mark.slow
def test_an_interrupt_waits_for_what_is_paid_for(tmp_path: Path) -> None:
    def slowly(request):
        reply = grade(request)
        reply.seconds = 0.3
        return reply

    command = [sys.executable, "-c", INTERRUPTED]
    with serving(slowly) as server:
        arguments = [*command, server.url, str(tmp_path / "cache.jsonl")]
        process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        while len(server.requests) < 9:
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
        assert process.returncode != 0
        assert "KeyboardInterrupt" in err
        seen = len(server.requests)
        assert seen < 40
        # Without a wait, six replies would have been paid for and lost.
        again = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
        assert again.stdout.strip() == "40", again.stderr
        assert len(server.requests) == 40
    assert max(server.served.values()) == 1
