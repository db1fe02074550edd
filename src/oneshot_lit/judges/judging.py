"""Judging the answers of a run: each distinct one once, resumable, scores beside their counts."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from oneshot_lit.errors import OneShotError
from oneshot_lit.files import name_full_disk, write_text_atomically
from oneshot_lit.judges.base import Judge, Verdict
from oneshot_lit.judges.predictions import Row, choose_sets, file_digest, read_predictions
from oneshot_lit.metrics_file import merge_scores, require_free

FOLDER = "judgments"


@dataclass(frozen=True)
class Outcome:
    """What judging gave: the mean scores, the facts beside them, and the file of the verdicts."""

    scores: dict[str, float]
    facts: dict[str, Any]
    file: Path


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
    rows = read_predictions(predictions)
    chosen = choose_sets(rows, sets, predictions)
    digest = file_digest(predictions)
    evaluation = f"judge/{judge.name}"
    # Refused now rather than after all is judged and paid for.
    require_free(root, evaluation, [f"{name}/{m}" for name in chosen for m in judge.metrics])
    verdicts = _judge_distinct(judge, [r for of in chosen.values() for r in of], root, progress)

    lines = [_line(row, verdicts[_key(row)]) for of in chosen.values() for row in of]
    target = root / FOLDER / f"{judge.name}.jsonl"
    write_text_atomically(target, "".join(lines))
    means: dict[str, float] = {}
    unjudged: dict[str, dict[str, int]] = {}
    for name, of in chosen.items():
        given = [verdicts[_key(row)] for row in of]
        unjudged[name] = dict(Counter(v.reason for v in given if v.reason is not None))
        means |= {f"{name}/{metric}": _mean(given, metric) for metric in judge.metrics}
    facts = {
        "judge": f"{type(judge).__module__}.{type(judge).__qualname__}",
        "version": judge.version,
        "samples": {name: len(of) for name, of in chosen.items()},
        "unjudged": unjudged,
        "empty_outputs": {n: sum(not r.answer.output for r in of) for n, of in chosen.items()},
        "judgments": f"{FOLDER}/{target.name}",
        "predictions_sha256": digest,
        **judge.facts(),
    }
    merge_scores(root, evaluation, means, facts)
    _partial(root, judge).unlink(missing_ok=True)
    return Outcome(means, facts, target)


def _judge_distinct(
    judge: Judge, rows: Sequence[Row], root: Path, progress: Callable[[int, int], None]
) -> dict[str, Verdict]:
    """Return the verdict of each distinct answer; those of a killed run are not asked for again."""
    answers = {_key(row): row.answer for row in rows}
    found = {} if judge.keeps_verdicts else _read_partial(judge, root)
    found = {key: verdict for key, verdict in found.items() if key in answers}
    todo = [key for key in answers if key not in found]
    progress(len(found), len(answers))
    with _PartialFile(judge, root, found) as partial:
        for position, verdict in judge.verdicts([answers[key] for key in todo]):
            if set(verdict.scores) != set(judge.metrics):
                raise OneShotError(
                    f"judge '{judge.name}': a verdict scores {', '.join(verdict.scores)} and not "
                    f"{', '.join(judge.metrics)}; mend its judge()."
                )
            found[todo[position]] = verdict
            partial.add(todo[position], verdict)
            progress(len(found), len(answers))
    if missing := len(answers) - len(found):
        raise OneShotError(f"judge '{judge.name}': gave no verdict for {missing} answers.")
    return found


def _key(row: Row) -> str:
    return f"{row.answer.digest()}:{row.answer.category or ''}"


def _line(row: Row, verdict: Verdict) -> str:
    content = {
        "set": row.set,
        "index": row.index,
        "id": row.id,
        "category": row.answer.category,
        "prompt": row.prompt_digest(),
        "digest": row.answer.digest(),
        **verdict.as_dict(),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n"


def _mean(verdicts: Sequence[Verdict], metric: str) -> float:
    """Return the mean over what could be judged, NaN if nothing could."""
    scores = [v.scores[metric] for v in verdicts if not math.isnan(v.scores[metric])]
    return math.fsum(scores) / len(scores) if scores else math.nan


def _partial(root: Path, judge: Judge) -> Path:
    return root / FOLDER / f".{judge.name}.partial.jsonl"


def _read_partial(judge: Judge, root: Path) -> dict[str, Verdict]:
    """Return what a killed run of the same judge left; a line that was cut off is left out."""
    found: dict[str, Verdict] = {}
    try:
        lines = _partial(root, judge).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    for line in lines:
        try:
            row = json.loads(line)
            if row["version"] == judge.version:
                found[str(row["key"])] = Verdict.from_dict(row, judge.metrics)
        except (ValueError, TypeError, KeyError):
            continue
    return found


class _PartialFile:
    """Verdicts as they are given, for a run that is killed; nothing if the judge keeps its own."""

    def __init__(self, judge: Judge, root: Path, found: dict[str, Verdict]) -> None:
        self.judge = judge
        self.path = _partial(root, judge)
        self.found = found
        self.file: TextIO | None = None

    def __enter__(self) -> _PartialFile:
        if not self.judge.keeps_verdicts:
            # Written anew, so that no line follows one that was cut off.
            lines = [self._line(key, verdict) for key, verdict in self.found.items()]
            write_text_atomically(self.path, "".join(lines))
            self.file = self.path.open("a", encoding="utf-8")
        return self

    def __exit__(self, *error: Any) -> None:
        if self.file is not None:
            self.file.close()

    def add(self, key: str, verdict: Verdict) -> None:
        if self.file is None:
            return
        try:
            self.file.write(self._line(key, verdict))
            self.file.flush()
        except OSError as error:
            name_full_disk(error, self.path)
            raise

    def _line(self, key: str, verdict: Verdict) -> str:
        row = {"version": self.judge.version, "key": key, **verdict.as_dict()}
        return json.dumps(row, ensure_ascii=False) + "\n"
