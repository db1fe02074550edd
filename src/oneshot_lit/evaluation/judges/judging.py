"""Judge the answers of a run: each distinct one once, resumable, with scores and counts."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Judge, Verdict
from oneshot_lit.evaluation.judges.predictions import (
    Row,
    choose_sets,
    file_digest,
    read_predictions,
)
from oneshot_lit.evaluation.judges.verdict_file import VerdictFile
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.io.metrics_file import merge_scores, require_free
from oneshot_lit.io.runs import PRODUCTS

FOLDER = "judgments"


def judge_predictions(
    judge: Judge,
    predictions: Path,
    root: Path,
    sets: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Judge a file of predictions, write ``<root>/judgments/<judge>.jsonl`` and merge the scores.

    Args:
        judge: The judge.
        predictions: The file.
        root: Folder of the run, whose ``metrics.json`` takes the scores.
        sets: Names of the sets; all of kind harmful if not given.
        progress: Called with the distinct answers judged so far, and all of them.

    Returns:
        ``<set>/<metric>`` -> mean score, and what ``metrics.json`` says beside the scores.

    Raises:
        OneShotError: for a mistake in the input; before anything is judged where that is possible.
    """
    from oneshot_lit.evaluation.metrics.registry import METRICS

    chosen = choose_sets(read_predictions(predictions), sets, predictions)
    # Refused now rather than after all is judged and paid for.
    if taken := [metric for metric in judge.metrics if metric in METRICS]:
        raise OneShotError(
            f"judge.metric '{taken[0]}': is the name of a metric of oneshot-lit test; give another."
        )
    evaluation = f"judge/{judge.name}"
    require_free(root, evaluation, [f"{name}/{m}" for name in chosen for m in judge.metrics])
    verdicts = _judge_distinct(judge, [row for of in chosen.values() for row in of], root, progress)

    lines = {name: [_line(row, verdicts) for row in of] for name, of in chosen.items()}
    reasons = {
        n: Counter(line["reason"] for line in of if line["reason"]) for n, of in lines.items()
    }
    target = root / FOLDER / f"{judge.name}.jsonl"
    facts: dict[str, Any] = {
        **_identity(judge),
        "predictions_sha256": file_digest(predictions),
        "samples": {name: len(of) for name, of in chosen.items()},
        "unjudged": {name: dict(count) for name, count in reasons.items()},
        "empty_outputs": {n: sum(not row.answer.output for row in of) for n, of in chosen.items()},
        "judgments": f"{FOLDER}/{target.name}",
        **judge.facts(),
    }
    if predictions.resolve() != (root / PRODUCTS["predict"]).resolve():
        facts["predictions"] = str(predictions)
    scores = {f"{name}/{m}": _mean(of, m) for name, of in lines.items() for m in judge.metrics}
    texts = [json.dumps(line, ensure_ascii=False) for of in lines.values() for line in of]
    write_text_atomically(target, "".join(f"{text}\n" for text in texts))
    merge_scores(root, evaluation, scores, facts)
    _partial(judge, root).unlink(missing_ok=True)
    return scores, facts


def _judge_distinct(
    judge: Judge, rows: Sequence[Row], root: Path, progress: Callable[[int, int], None]
) -> dict[str, Verdict]:
    """Return the verdict of each distinct answer; those of a killed run are not asked for again."""
    answers = {row.key(): row.answer for row in rows}
    # Only verdicts of the same judge with the same settings are taken up.
    identity = json.dumps([_identity(judge), judge.metrics])
    keys = {key: hashlib.sha256(f"{identity}{key}".encode()).hexdigest() for key in answers}
    kept = VerdictFile(_partial(judge, root))
    kept.load()
    verdicts = {key: kept.verdicts[keys[key]] for key in answers if keys[key] in kept.verdicts}
    todo = [key for key in answers if key not in verdicts]
    progress(len(verdicts), len(answers))
    for start in range(0, len(todo), judge.chunk):
        part = todo[start : start + judge.chunk]
        given = judge.judge([answers[key] for key in part])
        if [each.scores.keys() for each in given] != [set(judge.metrics)] * len(part):
            raise OneShotError(
                f"judge '{judge.name}': its judge() must give each answer a verdict that scores "
                f"{', '.join(judge.metrics)}."
            )
        for key, verdict in zip(part, given, strict=True):
            verdicts[key] = verdict
            if verdict.reason not in judge.passing:
                kept.keep(keys[key], verdict)
        progress(len(verdicts), len(answers))
    reasons = Counter(verdict.reason for verdict in verdicts.values())
    if reasons.keys() <= judge.passing:
        # An outage is not a result.
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise OneShotError(
            f"judge '{judge.name}': could judge none of {len(verdicts)} answers ({said}); earlier "
            "verdicts and scores stay as they are; run the same command again."
        )
    return verdicts


def _identity(judge: Judge) -> dict[str, Any]:
    """Return everything that may change a verdict."""
    kind = f"{type(judge).__module__}.{type(judge).__qualname__}"
    return {"judge": kind, "version": judge.version, "settings": judge.settings()}


def _partial(judge: Judge, root: Path) -> Path:
    return root / FOLDER / f".{judge.name}.partial.jsonl"


def _line(row: Row, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    return {
        "set": row.set,
        "index": row.index,
        "id": row.id,
        "category": row.answer.category,
        "prompt": row.prompt_digest(),
        "digest": row.answer.digest(),
        **verdicts[row.key()].as_dict(),
    }


def _mean(lines: Sequence[dict[str, Any]], metric: str) -> float:
    """Return the mean over what could be judged, NaN if nothing could."""
    scores = [s for line in lines if (s := line["scores"][metric]) is not None]
    return math.fsum(scores) / len(scores) if scores else math.nan
