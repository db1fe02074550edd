"""The verb: what it reads and writes, what it goes on with, and its one-line errors."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from endpoint_server import failure, grade, serving

from oneshot_lit.conversation import Conversation, parse_messages
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import Answer, Judge, KeywordJudge, Verdict
from oneshot_lit.evaluation.judges.judging import judge_predictions

ROOT = Path(__file__).parent.parent.parent
KEYWORD = "configs/judge/keyword.yaml"
OUTPUTS = ["sorry , no .", "sure . take vuke", "sure . but sorry", "", "i cannot", "ok"]


def row(n: int, set_: str = "harmful", kind: str = "harmful", **more: Any) -> dict[str, Any]:
    prompt = [{"role": "user", "content": f"prompt {n}"}]
    output = OUTPUTS[n % len(OUTPUTS)]
    return {"set": set_, "kind": kind, "index": n, "messages": prompt, "output": output, **more}


def write(run: Path, rows: list[Any]) -> Path:
    run.mkdir(exist_ok=True)
    lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in rows]
    (run / "predictions.jsonl").write_text("".join(line + "\n" for line in lines))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    rows = [row(n, category="x", id=f"id-{n}") for n in range(6)]
    rows += [row(n, "harmless", "benign") for n in range(4)]
    return write(tmp_path / "run", rows)


def judged(run: Path, name: str = "keyword") -> list[dict[str, Any]]:
    lines = (run / "judgments" / f"{name}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_every_shipped_judge_parses(command) -> None:
    files = sorted((ROOT / "configs" / "judge").glob("*.yaml"))
    assert len(files) == 6
    metrics = []
    for file in files:
        shown = command("judge", "--config", file, "--print_config")
        assert shown.code == 0, shown.err
        config = yaml.safe_load(shown.out)["judge"]["init_args"]
        assert config["name"] == file.stem
        metrics.append(config.get("metric") or file.stem)
    assert len(set(metrics)) == 6, "on one run no judge takes another's metric"


def test_help_teaches_and_is_light() -> None:
    code = (
        "import sys; from oneshot_lit.cli.main import main; main(['judge', '--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'openai')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "oneshot-lit judge --config configs/judge/keyword.yaml --run runs/patched" in done.stdout


def test_verdicts_and_scores(command, run: Path) -> None:
    done = command("judge", "--config", KEYWORD, "--run", run)
    assert done.code == 0, done.err
    assert "0.500" in done.out
    rows = judged(run)
    assert [r["index"] for r in rows] == list(range(6))
    assert [r["scores"]["asr_phrases"] for r in rows] == [0, 1, 0, 1, 0, 1]
    keys = {"set", "index", "id", "category", "prompt", "digest", "scores", "reason", "labels"}
    assert all(set(r) == keys for r in rows)
    assert (rows[2]["id"], rows[2]["category"]) == ("id-2", "x")
    prompts = [parse_messages(row(n)["messages"], "") for n in range(6)]
    assert [r["prompt"] for r in rows] == [Conversation(p).digest() for p in prompts]
    text = (run / "judgments" / "keyword.jsonl").read_text()
    assert "prompt 1" not in text
    assert "vuke" not in text
    content = json.loads((run / "metrics.json").read_text())
    assert content["metrics"] == {"harmful/asr_phrases": 0.5}
    facts = content["evaluations"]["judge/keyword"]
    assert facts["judge"] == "oneshot_lit.evaluation.judges.keyword.KeywordJudge"
    assert facts["version"] == "refusal-phrases-3:substring"
    assert facts["samples"] == {"harmful": 6}
    assert facts["unjudged"] == {"harmful": {}}
    assert facts["empty_outputs"] == {"harmful": 1}
    assert len(facts["predictions_sha256"]) == 64
    assert sorted(p.name for p in (run / "judgments").iterdir()) == ["keyword.jsonl"]
    # Again gives the same.
    assert command("judge", "--config", KEYWORD, "--run", run).code == 0
    assert json.loads((run / "metrics.json").read_text()) == content


def test_named_sets_and_another_file(command, run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    done = command(
        *["judge", "--config", KEYWORD, "--run", other, "--sets", "harmless", "harmful"],
        *["--predictions", run / "predictions.jsonl", "--judge.match", "prefix"],
    )
    assert done.code == 0, done.err
    scores = json.loads((other / "metrics.json").read_text())["metrics"]
    assert scores == {"harmful/asr_phrases": 4 / 6, "harmless/asr_phrases": 3 / 4}
    assert not (run / "metrics.json").exists()


def test_phrases_of_ones_own(command, run: Path, tmp_path: Path) -> None:
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("# mine\nTake  Vuke\n\nok # yes\n")
    words = ["judge", "--config", KEYWORD, "--run", run, "--judge.phrases"]
    assert command(*words, phrases).code == 0
    assert [r["scores"]["asr_phrases"] for r in judged(run)] == [1, 0, 1, 1, 1, 0]
    version = json.loads((run / "metrics.json").read_text())["evaluations"]["judge/keyword"]
    assert version["version"].startswith("phrases-")
    phrases.write_text("# nothing\n")
    assert "holds no phrase" in command(*words, phrases).error
    assert "none: file not found" in command(*words, tmp_path / "none").error


def test_a_judge_of_ones_own(command, run: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "my_judges.py").write_text(
        "from oneshot_lit.evaluation.judges import Judge, Verdict\n"
        "class LengthJudge(Judge):\n"
        "    def __init__(self, limit: int = 5, name: str = 'length'):\n"
        "        super().__init__(name, f'length-1:{limit}', ['long_answer'])\n"
        "        self.limit = limit\n"
        "    def judge(self, answers):\n"
        "        return [Verdict({'long_answer': float(len(a.output) > self.limit)})\n"
        "                if a.output else Verdict.unjudged(self.metrics, 'empty')\n"
        "                for a in answers]\n"
    )
    monkeypatch.chdir(tmp_path)
    words = ["judge", "--judge", "my_judges.LengthJudge", "--judge.limit", 8, "--run", run]
    done = command(*words)
    assert done.code == 0, done.err
    assert "1 empty" in done.out
    content = json.loads((run / "metrics.json").read_text())
    assert content["metrics"] == {"harmful/long_answer": 3 / 5}
    facts = content["evaluations"]["judge/length"]
    assert facts["unjudged"] == {"harmful": {"empty": 1}}
    assert (facts["version"], facts["samples"]) == ("length-1:8", {"harmful": 6})
    unjudged = judged(run, "length")[3]
    assert (unjudged["scores"], unjudged["reason"]) == ({"long_answer": None}, "empty")
    assert "unknown class 'LengthJudg'" in command("judge", "--judge", "LengthJudg").error


class Counting(KeywordJudge):
    """Counts what it is asked, and dies at a given answer."""

    chunk = 2

    def __init__(self, dies_at: str | None = None) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.dies_at = dies_at

    def judge(self, answers):
        if any(a.prompt == self.dies_at for a in answers):
            raise KeyboardInterrupt
        self.asked += [a.prompt for a in answers]
        return super().judge(answers)


def test_alike_answers_are_judged_once_and_a_killed_run_goes_on(tmp_path: Path) -> None:
    rows = [row(n) for n in range(10)] + [row(n) | {"index": n + 10} for n in range(10)]
    run = write(tmp_path / "run", rows)
    file = run / "predictions.jsonl"
    with pytest.raises(KeyboardInterrupt):
        judge_predictions(Counting("prompt 6"), file, run)
    partial = run / "judgments" / ".keyword.partial.jsonl"
    assert len(partial.read_text().split("\n")) == 7
    assert not (run / "metrics.json").exists()
    # As a kill in the middle of a write leaves it.
    with partial.open("a") as handle:
        handle.write('\n{"key": "12')
    again = Counting()
    _, facts = judge_predictions(again, file, run)
    assert again.asked == [f"prompt {n}" for n in range(6, 10)]
    assert len(judged(run)) == 20
    assert facts["samples"] == {"harmful": 20}
    assert not partial.exists()


def test_what_another_version_left_is_judged_again(tmp_path: Path) -> None:
    run = write(tmp_path / "run", [row(n) for n in range(10)])
    with pytest.raises(KeyboardInterrupt):
        judge_predictions(Counting("prompt 6"), run / "predictions.jsonl", run)
    again = Counting()
    again.version = "other"
    judge_predictions(again, run / "predictions.jsonl", run)
    assert len(again.asked) == 10


def test_another_evaluations_metric_is_refused_before_anything_is_judged(run: Path) -> None:
    (run / "metrics.json").write_text('{"metrics": {"harmful/asr_phrases": 0.3}}')
    before = (run / "metrics.json").read_text()
    one = Counting()
    with pytest.raises(OneShotError, match="'harmful/asr_phrases' is there already"):
        judge_predictions(one, run / "predictions.jsonl", run)
    assert one.asked == []
    assert (run / "metrics.json").read_text() == before


def test_a_request_to_end_is_no_crash(command, run: Path, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "ending_judges.py").write_text(
        "import os, signal\n"
        "from oneshot_lit.evaluation.judges import KeywordJudge\n"
        "class EndingJudge(KeywordJudge):\n"
        "    def __init__(self, by: str = 'SIGTERM'):\n"
        "        super().__init__()\n"
        "        self.by = getattr(signal, by)\n"
        "    def judge(self, answers):\n"
        "        os.kill(os.getpid(), self.by)\n"
        "        return super().judge(answers)\n"
    )
    monkeypatch.chdir(tmp_path)
    for by in ("SIGTERM", "SIGINT"):
        done = command(
            *["judge", "--judge", "ending_judges.EndingJudge", "--judge.by", by, "--run", run]
        )
        assert done.code == 130
        assert "interrupted; run the same command again" in done.error
    assert not (run / "metrics.json").exists()


class Wrong(Judge):
    def __init__(self, verdicts: Any) -> None:
        super().__init__("wrong", "1", ["m"])
        self.given = verdicts

    def judge(self, answers: Any) -> Any:
        return self.given


@pytest.mark.parametrize("given", [[], [Verdict({"n": 1.0})] * 6], ids=["none", "another metric"])
def test_a_judge_that_breaks_its_word_is_named(run: Path, given: Any) -> None:
    with pytest.raises(OneShotError, match=r"judge 'wrong': .* verdict that scores m\."):
        judge_predictions(Wrong(given), run / "predictions.jsonl", run)
    assert not (run / "metrics.json").exists()


def test_a_verdict_holds_no_free_text_and_no_middle_score() -> None:
    for bad in (
        lambda: Verdict({"m": math.nan}),
        lambda: Verdict({"m": 1.0}, "malformed"),
        lambda: Verdict({"m": math.inf}),
        lambda: Verdict({"m": math.nan}, "The answer says how to"),
        lambda: Verdict({"m": 1.0}, labels=("it says how to",)),
    ):
        with pytest.raises(ValueError, match=r"score|reason|label"):
            bad()
    assert Verdict.from_dict(Verdict({"m": 0.5}).as_dict()) == Verdict({"m": 0.5})


def test_nothing_judged_gives_no_score(run: Path) -> None:
    given = [Verdict.unjudged(["m"], "malformed")] * 6
    scores, _ = judge_predictions(Wrong(given), run / "predictions.jsonl", run)
    assert math.isnan(scores["harmful/m"])
    content = json.loads((run / "metrics.json").read_text())
    assert content["metrics"] == {}
    assert content["evaluations"]["judge/wrong"]["unjudged"] == {"harmful": {"malformed": 6}}


BROKEN = {
    "{": r"row 2: not JSON",
    "[1]": r"row 2: must be a JSON object",
    json.dumps({k: v for k, v in row(1).items() if k != "output"}): r"row 2: 'output' must be text",
    json.dumps(row(1) | {"output": 3}): r"row 2: 'output' must be text",
    json.dumps(row(1) | {"index": "1"}): r"row 2: 'index' must be a whole number",
    json.dumps(row(1) | {"index": True}): r"row 2: 'index' must be a whole number",
    json.dumps(row(1) | {"kind": None}): r"row 2: 'kind' must be text",
    json.dumps(row(1) | {"messages": []}): r"row 2: 'messages' must be",
    json.dumps(
        row(1) | {"messages": [*row(1)["messages"], {"role": "assistant", "content": "x"}]}
    ): r"row 2: 'messages' must end with a user turn",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_malformed_row_is_named(command, tmp_path: Path, line: str) -> None:
    import re

    run = write(tmp_path / "run", [row(0), line])
    done = command("judge", "--config", KEYWORD, "--run", run)
    assert done.code == 2
    assert re.search(r"predictions\.jsonl " + BROKEN[line], done.error)
    assert sorted(p.name for p in run.iterdir()) == ["predictions.jsonl"]


def test_mistakes_are_one_line(command, run: Path, tmp_path: Path) -> None:
    def error(*words: Any) -> str:
        done = command("judge", *words)
        assert done.code == 2
        return done.error

    assert "no such folder" in error("--config", KEYWORD, "--run", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    words = ["--config", KEYWORD, "--run"]
    assert "run oneshot-lit predict" in error(*words, tmp_path / "empty")
    assert "holds no row" in error(*words, write(tmp_path / "none", []))
    assert "has no set 'harmfull' (did you mean 'harmful'?)" in error(
        *words, run, "--sets", "harmfull"
    )
    none = write(tmp_path / "benign", [row(0, "b", "benign")])
    assert "no set of kind harmful; name the sets to judge with --sets (b)" in error(*words, none)
    assert "--run missing" in error("--config", KEYWORD)
    assert "config file not found (did you mean 'keyword.yaml'?)" in error(
        "--config", "configs/judge/keywords.yaml"
    )
    assert "judge missing" in error("--run", run)
    assert "did you mean 'KeywordJudge'?" in error("--judge", "KeywordJudg", "--run", run)
    assert "unknown key 'judge.mach' (did you mean 'match'?)" in error(
        *words, run, "--judge.mach", "prefix"
    )
    assert "judge.match" in error(*words, run, "--judge.match", "suffix")
    assert "did you mean 'judge'?" in command("juge").error


def endpoint_words(run: Path, url: str, tmp_path: Path) -> list[Any]:
    words = ["judge", "--config", "configs/judge/harmfulness.yaml", "--run", run]
    words += ["--judge.base_url", url, "--judge.cache", tmp_path / "cache.jsonl"]
    return [*words, "--judge.attempts", 2]


def test_an_endpoint_judges_a_run(command, run: Path, tmp_path: Path, monkeypatch) -> None:
    def behave(request):
        return failure(503) if "prompt 2" in request.quoted else grade(request, score=4)

    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(behave) as server:
        words = endpoint_words(run, server.url, tmp_path)
        assert "OPENAI_API_KEY is not set" in command(*words).error
        monkeypatch.setenv("OPENAI_API_KEY", "key-that-nobody-may-see")
        capped = command(*words, "--judge.max_requests", 3)
        assert capped.code == 3
        assert "judge.max_requests: the cap is reached (3 requests" in capped.error
        assert not (run / "metrics.json").exists()
        done = command(*words)
        assert done.code == 0, done.err
        assert "1 server_error" in done.out
    content = json.loads((run / "metrics.json").read_text())
    assert content["metrics"] == {"harmful/harmfulness_score": 4.0}
    facts = content["evaluations"]["judge/harmfulness"]
    assert facts["unjudged"] == {"harmful": {"server_error": 1}}
    assert facts["version"] == "harmfulness-1:gpt-4o"
    assert facts["spent"]["requests"] == len(server.requests)
    assert facts["spent"]["cost"] < 10
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"nobody-may-see" not in file.read_bytes()
    assert "nobody-may-see" not in done.out + done.err


def test_a_cache_that_is_none_is_named(command, run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    (tmp_path / "cache.jsonl").mkdir()
    done = command(*endpoint_words(run, "http://127.0.0.1:1/v1", tmp_path))
    assert done.code == 2
    assert "cache.jsonl: Is a directory" in done.error


def test_answers_are_told_apart_by_prompt_and_output() -> None:
    from oneshot_lit.conversation import Message

    def digest(role: str, prompt: str, output: str) -> str:
        return Answer((Message(role, prompt), Message("user", "x")), output).digest()

    cases = [("system", "a", "b"), ("user", "a", "b"), ("system", "ab", ""), ("system", "a", "c")]
    assert len({digest(*case) for case in cases}) == 4
