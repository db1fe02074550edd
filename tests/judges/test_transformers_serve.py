"""The endpoint judge against a real server, `transformers serve`, with a tiny model."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from endpoint_server import free_port
from tiny_classifiers import save_choosing
from transformers import AutoModelForCausalLM, AutoTokenizer

from oneshot_lit.conversation import Message
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import Answer, EndpointJudge, HarmfulnessRubric, Rubric

pytestmark = pytest.mark.slow

SECONDS = 120
MIXED = [
    Answer((Message("user", f"how {n} " * (n % 7 + 1)),), "an answer " * (n % 11) + str(n))
    for n in range(24)
]


class YesNoRubric(Rubric):
    """A question that a tiny model can answer: by one of two words."""

    version = "yes-no-1"
    metric = "said_yes"

    def messages(self, answer: Answer) -> tuple[list[dict[str, str]], str]:
        return [{"role": "user", "content": f"{answer.prompt} {answer.output}"}], ""

    def read(self, text: str, tag: str) -> float | None:
        return {"yes": 1.0, "no": 0.0}.get(text)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory):
    folder = save_choosing(tmp_path_factory.mktemp("served") / "model")
    port = free_port()
    words = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    words += ["--host", "127.0.0.1", "--port", str(port), "--device", "cpu", "--dtype", "float32"]
    log = (folder.parent / "log").open("w")
    process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)
    try:
        end = time.monotonic() + SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    break
            except OSError:
                said = (folder.parent / "log").read_text()[-2000:]
                assert process.poll() is None, said
                assert time.monotonic() < end, said
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", folder
    finally:
        process.kill()
        process.wait()
        log.close()


def judge(served, cache: Path, rubric: Rubric, **options) -> EndpointJudge:
    url, folder = served
    return EndpointJudge(
        **{"model": str(folder), "base_url": url, "api_key_env": None, "concurrency": 3}
        | {"rubric": rubric, "cache": str(cache), "options": {"temperature": 0, "max_tokens": 1}}
        | {"price_per_million_input": 2.0, "price_per_million_output": 0.0}
        | options
    )


def test_the_server_says_what_the_model_says(served, tmp_path: Path) -> None:
    first = judge(served, tmp_path / "c", YesNoRubric())
    verdicts = first.judge(MIXED)
    model = AutoModelForCausalLM.from_pretrained(served[1])
    tokenizer = AutoTokenizer.from_pretrained(served[1])
    expected, lengths = [], 0
    for answer in MIXED:
        chat, _ = YesNoRubric().messages(answer)
        ids = tokenizer.apply_chat_template(chat, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            said = tokenizer.decode(model(ids).logits[0, -1].argmax())
        expected.append({"said_yes": float(said == "yes")})
        lengths += ids.shape[1]
    assert [v.scores for v in verdicts] == expected
    assert len({v.scores["said_yes"] for v in verdicts}) == 2
    assert first.facts()["spent"] == {"requests": 24, "cost": pytest.approx(lengths * 2e-6)}
    again = judge(served, tmp_path / "c", YesNoRubric())
    assert again.judge(MIXED) == verdicts
    assert again.facts()["spent"]["requests"] == 24


def test_what_a_tiny_model_writes_is_no_grade(served, tmp_path: Path) -> None:
    options = {"temperature": 0, "max_tokens": 8}
    one = judge(served, tmp_path / "c", HarmfulnessRubric(), options=options)
    for verdict in one.judge(MIXED[:3]):
        assert math.isnan(verdict.scores["harmfulness_score"])
        assert verdict.reason == "malformed"
    assert one.facts()["spent"]["requests"] == 3


def test_a_field_that_the_server_does_not_know_ends_the_run(served, tmp_path: Path) -> None:
    options = {"max_tokens": 8, "no_such_field": 1}
    with pytest.raises(OneShotError, match=r"refuses the requests .*judge\.options"):
        judge(served, tmp_path / "c", HarmfulnessRubric(), options=options).judge(MIXED)


def test_the_verb_against_the_server(served, command, tmp_path: Path) -> None:
    rows = [
        {"set": "harmful", "kind": "harmful", "index": n, "output": a.output}
        | {"messages": [{"role": "user", "content": a.prompt}]}
        for n, a in enumerate(MIXED[:4])
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    words = ["judge", "--config", "configs/judge/strongreject.yaml", "--run", tmp_path]
    words += ["--judge.base_url", served[0], "--judge.api_key_env", "null"]
    words += ["--judge.model", served[1], "--judge.cache", tmp_path / "c"]
    done = command(*words, "--judge.options", "{temperature: 0, max_tokens: 8}")
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert content["metrics"] == {}
    facts = content["evaluations"]["judge/strongreject"]
    assert facts["unjudged"] == {"harmful": {"malformed": 4}}
    assert facts["spent"]["requests"] == 4
