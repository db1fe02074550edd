"""Judge the answers of a run: each distinct one once, resumable, with scores and counts."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from oneshot_lit.io.files import name_full_disk, write_text_atomically
from oneshot_lit.io.locking import results_locked
from oneshot_lit.io.metrics_file import add_scores, read_metrics, require_free
from oneshot_lit.io.read_files import read_jsonl
from oneshot_lit.io.runs import PRODUCTS

FOLDER = "judgments"
# Verdicts of other sets stay beside new ones only if all of these are the same.
_COMPARABLE = ("judge", "version", "settings", "predictions_sha256")


@dataclass(frozen=True)
class Outcome:
    """The result of judging.

    Attributes:
        scores: ``<set>/<metric>`` -> mean score.
        facts: What ``metrics.json`` says beside the scores.
        file: The file of the verdicts.
        dropped: Sets that were judged before with other settings, whose verdicts are gone.
    """

    scores: dict[str, float]
    facts: dict[str, Any]
    file: Path
    dropped: tuple[str, ...] = ()


def judge_predictions(
    judge: Judge,
    predictions: Path,
    root: Path,
    sets: Sequence[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Outcome:
    """Judge a file of predictions, write ``<root>/judgments/<judge>.jsonl`` and merge the scores.

    Args:
        judge: The judge.
        predictions: The file.
        root: Folder of the run, whose ``metrics.json`` takes the scores.
        sets: Names of the sets; all of kind harmful if not given.
        progress: Called with the distinct answers judged so far, and all of them.

    Raises:
        OneShotError: for a mistake in the input; before anything is judged where that is possible.
    """
    from oneshot_lit.evaluation.metrics.registry import METRICS

    rows = read_predictions(predictions)
    chosen = choose_sets(rows, sets, predictions)
    facts: dict[str, Any] = {
        "judge": f"{type(judge).__module__}.{type(judge).__qualname__}",
        "version": judge.version,
        # As JSON reads them back: a tuple is a list.
        "settings": json.loads(json.dumps(judge.settings())),
        "predictions_sha256": file_digest(predictions),
    }
    if predictions.resolve() != (root / PRODUCTS["predict"]).resolve():
        facts["predictions"] = str(predictions)
    # Refused now rather than after all is judged and paid for.
    if taken := [metric for metric in judge.metrics if metric in METRICS]:
        raise OneShotError(
            f"judge.metric '{taken[0]}': is the name of a metric of oneshot-lit test; give another."
        )
    keys = [f"{name}/{metric}" for name in chosen for metric in judge.metrics]
    require_free(root, f"judge/{judge.name}", keys)
    verdicts = _judge_distinct(judge, [r for of in chosen.values() for r in of], root, progress)

    target = root / FOLDER / f"{judge.name}.jsonl"
    # Another judge, or the same one on other sets, may end at the same moment.
    with results_locked(root):
        kept, dropped = _judged_before(judge, root, facts, list(chosen))
        lines = kept | {name: [_line(row, verdicts) for row in of] for name, of in chosen.items()}
        lines = {name: lines[name] for name in dict.fromkeys(r.set for r in rows) if name in lines}
        facts |= _counts(lines, rows)
        facts |= {"judgments": f"{FOLDER}/{target.name}", **judge.facts()}
        scores = {f"{n}/{m}": _mean(of, m) for n, of in lines.items() for m in judge.metrics}
        texts = [json.dumps(row, ensure_ascii=False) for of in lines.values() for row in of]
        write_text_atomically(target, "".join(f"{text}\n" for text in texts))
        add_scores(root, f"judge/{judge.name}", scores, facts)
        for partial in target.parent.glob(f".{judge.name}.*.partial.jsonl"):
            partial.unlink()
    return Outcome(scores, facts, target, dropped)


def _judged_before(
    judge: Judge, root: Path, facts: Mapping[str, Any], judged: Sequence[str]
) -> tuple[dict[str, list[dict[str, Any]]], tuple[str, ...]]:
    """Return the rows of each set that is not judged now, and the sets whose rows are gone."""
    before = read_metrics(root)["evaluations"].get(f"judge/{judge.name}", {})
    rows: dict[str, list[dict[str, Any]]] = {}
    if all(before.get(key) == facts[key] for key in _COMPARABLE):
        with suppress(OneShotError):
            for _, row in read_jsonl(root / FOLDER / f"{judge.name}.jsonl"):
                rows.setdefault(str(row.get("set")), []).append(row)
    others = {name: n for name, n in before.get("samples", {}).items() if name not in judged}
    kept = {
        name: rows[name]
        for name, count in others.items()
        if len(rows.get(name, ())) == count
        and all(f"{name}/{metric}" in before["scores"] for metric in judge.metrics)
    }
    return kept, tuple(name for name in others if name not in kept)


def _judge_distinct(
    judge: Judge, rows: Sequence[Row], root: Path, progress: Callable[[int, int], None]
) -> dict[str, Verdict]:
    """Return the verdict of each distinct answer; those of a killed run are not asked for again."""
    answers = {_key(row): row.answer for row in rows}
    partial = root / FOLDER / f".{judge.name}.{_identity(judge)}.partial.jsonl"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise OneShotError(f"{partial.parent}: must be a folder; move the file away.") from error
    verdicts = {key: v for key, v in _read_partial(partial, judge).items() if key in answers}
    todo = [key for key in answers if key not in verdicts]
    progress(len(verdicts), len(answers))
    for position, verdict in judge.verdicts([answers[key] for key in todo]):
        if set(verdict.scores) != set(judge.metrics):
            raise OneShotError(
                f"judge '{judge.name}': a verdict scores {', '.join(verdict.scores)} and not "
                f"{', '.join(judge.metrics)}; correct its judge()."
            )
        verdicts[todo[position]] = verdict
        if not judge.keeps_verdicts:
            _append(partial, {"key": todo[position], **verdict.as_dict()})
        progress(len(verdicts), len(answers))
    if missing := len(answers) - len(verdicts):
        raise OneShotError(f"judge '{judge.name}': gave no verdict for {missing} answers.")
    reasons = Counter(verdict.reason for verdict in verdicts.values())
    if reasons.keys() <= judge.passing:
        # An outage is not a result.
        partial.unlink(missing_ok=True)
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        raise OneShotError(
            f"judge '{judge.name}': could judge none of {len(verdicts)} answers ({said}); earlier "
            "verdicts and scores stay as they are; run the same command again."
        )
    return verdicts


def _key(row: Row) -> str:
    return f"{row.answer.digest()}:{row.answer.category or ''}"


def _identity(judge: Judge) -> str:
    """Return a hash of everything that may change a verdict."""
    kind = f"{type(judge).__module__}.{type(judge).__qualname__}"
    text = json.dumps([kind, judge.version, judge.metrics, judge.settings()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _append(path: Path, row: Mapping[str, Any]) -> None:
    # The line end comes first, so that no row continues one that a kill has left half written.
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"\n{json.dumps(row, ensure_ascii=False)}")
    except OSError as error:
        name_full_disk(error, path)
        raise


def _read_partial(path: Path, judge: Judge) -> dict[str, Verdict]:
    """Return what a killed run with the same settings left, half written rows apart."""
    verdicts: dict[str, Verdict] = {}
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with suppress(ValueError, TypeError, KeyError):
                row = json.loads(line)
                verdicts[str(row["key"])] = Verdict.from_dict(row, judge.metrics)
    return verdicts


def _line(row: Row, verdicts: Mapping[str, Verdict]) -> dict[str, Any]:
    return {
        "set": row.set,
        "index": row.index,
        "id": row.id,
        "category": row.answer.category,
        "prompt": row.prompt_digest(),
        "digest": row.answer.digest(),
        **verdicts[_key(row)].as_dict(),
    }


def _counts(lines: Mapping[str, Sequence[dict[str, Any]]], rows: Sequence[Row]) -> dict[str, Any]:
    """Return, for each set, the answers, those without a verdict by reason, and the empty ones."""
    empty = Counter(row.set for row in rows if not row.answer.output)
    reasons = {n: Counter(row["reason"] for row in of if row["reason"]) for n, of in lines.items()}
    return {
        "samples": {name: len(of) for name, of in lines.items()},
        "unjudged": {name: dict(count) for name, count in reasons.items()},
        "empty_outputs": {name: empty[name] for name in lines},
    }


def _mean(lines: Sequence[dict[str, Any]], metric: str) -> float:
    """Return the mean over what could be judged, NaN if nothing could."""
    scores = [s for line in lines if (s := line["scores"][metric]) is not None]
    return math.fsum(scores) / len(scores) if scores else math.nan
