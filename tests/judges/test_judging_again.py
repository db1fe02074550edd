"""Judging a run once more: what stays of the verdicts before, what goes, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_classifiers import save_choosing

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import (
    HarmBenchJudge,
    Judge,
    KeywordJudge,
    Verdict,
)
from oneshot_lit.evaluation.judges.classifier import model_digest
from oneshot_lit.evaluation.judges.judging import judge_predictions

KEYWORD = "configs/judge/keyword.yaml"


def write(run: Path, sets: tuple[str, ...] = ("a", "b"), count: int = 6, **more: Any) -> Path:
    run.mkdir(exist_ok=True)
    rows = [
        {
            "set": name,
            "kind": "harmful",
            "index": n,
            "messages": [{"role": "user", "content": f"prompt {name} {n}"}],
            "output": "sorry , no ." if n % 2 else f"sure {n}",
            **more,
        }
        for name in sets
        for n in range(count)
    ]
    path = run / "predictions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def results(run: Path, name: str = "keyword") -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    content = json.loads((run / "metrics.json").read_text())
    lines = (run / "judgments" / f"{name}.jsonl").read_text("utf-8").strip().split("\n")
    return (
        content["metrics"],
        content["evaluations"][f"judge/{name}"],
        [f"{row['set']} {row['index']}" for row in map(json.loads, lines)],
    )


class Silent(Judge):
    """Can judge what is said to be clear, and nothing else."""

    def __init__(self, clear: str = "", reason: str = "malformed", version: str = "1") -> None:
        super().__init__("keyword", version, ["m"])
        self.clear, self.reason = clear, reason

    def judge(self, answers):
        clear = [self.clear and self.clear in answer.prompt for answer in answers]
        given = {True: Verdict({"m": 1.0}), False: Verdict.unjudged(["m"], self.reason)}
        return [given[bool(each)] for each in clear]


# What only some call a line end stands in a row as it is.
@pytest.mark.parametrize("category", ["plain", "line\u2028or\x85two"])
def test_judging_again_replaces_the_earlier_verdicts(
    command, tmp_path: Path, category: str
) -> None:
    run = tmp_path / "run"
    write(run, category=category)
    words = ["judge", "--config", KEYWORD, "--run", run]
    assert command(*words).code == 0
    assert results(run)[0] == {"a/asr_phrases": 0.5, "b/asr_phrases": 0.5}
    assert command(*words, "--sets", "b", "--judge.match", "prefix").code == 0
    scores, facts, rows = results(run)
    assert (list(scores), list(facts["samples"])) == (["b/asr_phrases"], ["b"])
    assert {row.split()[0] for row in rows} == {"b"}
    assert command(*words, "--sets", "b", "--judge.metric", "mine").code == 0
    assert results(run)[0] == {"b/mine": 0.5}


def test_an_outage_is_no_result(tmp_path: Path) -> None:
    file = write(tmp_path)
    judge = Silent(reason="timed_out")
    assert math.isnan(judge_predictions(judge, file, tmp_path)[0]["a/m"])
    shutil.rmtree(tmp_path / "judgments")
    (tmp_path / "metrics.json").unlink()
    judge.passing = frozenset(["timed_out"])
    with pytest.raises(OneShotError, match=r"12 timed_out.*run the same command again"):
        judge_predictions(judge, file, tmp_path)
    assert not (tmp_path / "metrics.json").exists()


@pytest.fixture(scope="module")
def choosing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_choosing(tmp_path_factory.mktemp("choosing"))


@pytest.mark.slow
def test_a_killed_classifier_goes_on_with_its_own_settings_only(
    choosing: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(choosing, tmp_path / "model")
    file = write(tmp_path / "run", count=10)

    def go(dies: bool = False, **options: Any) -> Any:
        options = {"max_length": 2048, "dtype": "float32"} | options
        judge = HarmBenchJudge(str(folder), batch_size=2, device="cpu", **options)

        def progress(done: int, of: int) -> None:
            started.append(done)
            if dies and done == 16:
                raise KeyboardInterrupt

        started: list[int] = []
        try:
            return started, judge_predictions(judge, file, file.parent, None, progress)
        except KeyboardInterrupt:
            return started, None

    go(dies=True)
    assert go()[0][0] == 16
    for other in (
        {"max_length": 1500},
        {"dtype": "float64"},
        {"max_new_tokens": 2},
    ):
        go(dies=True)
        (file.parent / "metrics.json").unlink()
        started, outcome = go(**other)
        assert started[0] == 0
        assert outcome[1]["settings"]["max_length"] == other.get("max_length", 2048)
    go(dies=True)
    # Another model at the same place.
    save_choosing(folder, among=("no", "yes"))
    assert go()[0][0] == 0


def test_another_model_at_the_same_place_is_seen(choosing: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(choosing, tmp_path / "model")
    first = model_digest(str(folder))
    assert first == model_digest(str(folder))
    assert model_digest("some/name") is None
    weights = folder / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    second = model_digest(str(folder))
    assert second != first
    (folder / "chat_template.jinja").write_text("{{ bos_token }}")
    assert model_digest(str(folder)) not in (first, second)


def test_a_damaged_folder_is_one_line_before_anything_is_judged(command, tmp_path: Path) -> None:
    def refused(said: str) -> None:
        done = command("judge", "--config", KEYWORD, "--run", tmp_path)
        assert done.code == 2
        assert said in done.error

    write(tmp_path)
    (tmp_path / "judgments").write_text("")
    refused("judgments")
    (tmp_path / "judgments").unlink()
    (tmp_path / "metrics.json").mkdir()
    refused("metrics.json: Is a directory")
    assert not (tmp_path / "judgments").exists()


def test_answers_of_another_place_are_noted(tmp_path: Path) -> None:
    file = write(tmp_path / "run")
    own = judge_predictions(KeywordJudge(), file, tmp_path / "run")
    assert "predictions" not in own[1]
    other = judge_predictions(KeywordJudge(), file, tmp_path / "other")
    assert other[1]["predictions"] == str(file)


def test_a_metric_of_the_test_is_not_a_judges(command, tmp_path: Path) -> None:
    write(tmp_path)
    words = ["judge", "--config", KEYWORD, "--run", tmp_path, "--judge.metric", "asr_keyword"]
    done = command(*words)
    assert done.code == 2
    assert "judge.metric 'asr_keyword': is the name of a metric of oneshot-lit test" in done.error


def test_new_answers_mark_what_was_judged_before(tmp_path: Path) -> None:
    from types import SimpleNamespace

    from oneshot_lit.callbacks.predictions import PredictionWriter

    file = write(tmp_path / "run", ("a",))
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    other = write(tmp_path / "other")
    judge_predictions(KeywordJudge(), file, tmp_path / "run")
    elsewhere = KeywordJudge(name="elsewhere", metric="other")
    judge_predictions(elsewhere, other, tmp_path / "run")
    loader = SimpleNamespace(dataset=SimpleNamespace(name="a"))
    trainer = SimpleNamespace(
        world_size=1,
        is_global_zero=True,
        predict_dataloaders=[loader],
        default_root_dir=str(tmp_path / "run"),
    )

    def predict() -> dict[str, bool]:
        PredictionWriter().write_on_epoch_end(trainer, None, rows, [])
        content = json.loads((tmp_path / "run" / "metrics.json").read_text())
        return {name: "outdated" in facts for name, facts in content["evaluations"].items()}

    assert predict() == {"judge/keyword": False, "judge/elsewhere": False}
    rows[0]["output"] = "new"
    assert predict() == {"judge/keyword": True, "judge/elsewhere": False}
    judge_predictions(KeywordJudge(), file, tmp_path / "run")
    assert "outdated" not in results(tmp_path / "run")[1]
