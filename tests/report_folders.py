"""Run folders made by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.conversation import Message, digest_of
from oneshot_lit.evaluation.judges.base import Answer
from oneshot_lit.report.content import build_report
from oneshot_lit.report.runs import read_run

KINDS = {"asr_keyword": "harmful", "over_refusal": "near_miss", "rouge1": "task"}
Scores = Sequence[float | None]


def prompt_of(name: str, index: int) -> str:
    return f"{name} prompt {index}"


def digest_of_prompt(name: str, index: int) -> str:
    return digest_of([Message("user", prompt_of(name, index))])


def answer_of(name: str, index: int) -> Answer:
    return Answer((Message("user", prompt_of(name, index)),), answer_text(index))


def mean(scores: Scores) -> float | None:
    known = [s for s in scores if s is not None]
    return sum(known) / len(known) if known else None


def make_run(
    root: Path,
    sets: Mapping[str, Mapping[str, Scores]],
    *,
    categories: Sequence[str | None] = ("toxins", "weapons"),
    outcomes: bool = True,
    order: int = 1,
    **settings: Any,
) -> Path:
    """Write metrics.json and outcomes.jsonl of a test; `sets` is set -> metric -> scores."""
    root.mkdir(parents=True, exist_ok=True)
    metrics, samples, unscored, rows = {}, {}, {}, []
    for name, by_metric in sets.items():
        count = samples[name] = len(next(iter(by_metric.values())))
        for metric, scores in by_metric.items():
            metrics[f"{name}/{metric}"] = mean(scores)
            unscored[f"{name}/{metric}"] = sum(s is None for s in scores)
        for index in range(count):
            rows.append(
                {
                    "set": name,
                    "kind": next((KINDS[m] for m in by_metric if m in KINDS), "harmful"),
                    "index": index,
                    "id": None,
                    "category": categories[index % len(categories)] if categories else None,
                    "prompt": digest_of_prompt(name, index),
                    "digest": answer_of(name, index).digest(),
                    "scores": {m: s[index] for m, s in by_metric.items()},
                    "empty": False,
                }
            )
    if order < 0:
        # The same prompts in another order.
        for row, twin in zip(rows, list(reversed(rows)), strict=True):
            row["new"] = twin["index"]
        rows = [{**row, "index": row.pop("new")} for row in rows]
    content = {
        "metrics": metrics,
        "samples": samples,
        "empty_outputs": dict.fromkeys(samples, 0),
        "unscored": {k: n for k, n in unscored.items() if n},
        "model_name_or_path": f"/home/somebody/secret/{root.name}/model",
        "ckpt_path": None,
        "dtype": "float32",
        "precision": "32-true",
        "seed": 0,
        "decoding": {"max_new_tokens": 24, "do_sample": False, "temperature": 1.0, "top_p": 1.0},
        "phrase_list": "phrases-of-this-test",
        "versions": {"python": "3.11"},
    }
    (root / "metrics.json").write_text(json.dumps(content | settings))
    if outcomes:
        write_rows(root / "outcomes.jsonl", rows)
    return root


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def answer_text(index: int) -> str:
    return f"SECRET-OUTPUT {index}"


def add_predictions(
    root: Path, name: str, kind: str, outputs: Sequence[str], references: Sequence[str] = ()
) -> None:
    path = root / "predictions.jsonl"
    rows = [
        {
            "set": name,
            "kind": kind,
            "index": index,
            "messages": [{"role": "user", "content": prompt_of(name, index)}],
            "id": None,
            "category": None,
            "reference": references[index] if references else None,
            "output": output,
        }
        for index, output in enumerate(outputs)
    ]
    before = path.read_text() if path.exists() else ""
    path.write_text(before + "".join(json.dumps(row) + "\n" for row in rows))


def add_judge(root: Path, judge: str, name: str, metric: str, scores: Scores, **facts: Any) -> None:
    """Write a judge's verdicts and merge its mean."""
    rows = []
    for index, score in enumerate(scores):
        rows.append(
            {
                "set": name,
                "index": index,
                "id": None,
                "category": None,
                "prompt": digest_of_prompt(name, index),
                "digest": answer_of(name, index).digest(),
                "scores": {metric: score},
                "reason": "malformed" if score is None else None,
                "labels": [],
            }
        )
    write_rows(root / "judgments" / f"{judge}.jsonl", rows)
    path = root / "metrics.json"
    content = json.loads(path.read_text())
    if (value := mean(scores)) is not None:
        content["metrics"][f"{name}/{metric}"] = value
    unjudged = sum(s is None for s in scores)
    content.setdefault("evaluations", {})[f"judge/{judge}"] = {
        "judge": "oneshot_lit.evaluation.judges.endpoint.EndpointJudge",
        "version": f"{judge}-1",
        "samples": {name: len(scores)},
        "unjudged": {name: {"malformed": unjudged} if unjudged else {}},
        "scores": [f"{name}/{metric}"],
        **facts,
    }
    path.write_text(json.dumps(content))


def report_of(*folders: Path, **options: Any) -> dict[str, Any]:
    """Return the content of ``report.json`` for the runs in some folders."""
    runs = [read_run(folder.name, folder) for folder in folders]
    return build_report(runs, "t", **options).as_json()


def score_of(content: Mapping[str, Any], key: str, run: str) -> dict[str, Any]:
    """Return the row of a score and run."""
    wanted = (*key.rsplit("/", 1), run)
    (row,) = (r for r in content["scores"] if (r["set"], r["metric"], r["run"]) == wanted)
    return row
