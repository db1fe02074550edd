"""Judging the answers of a run: each distinct one once, resumable, scores beside their counts."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.base import Judge, Verdict
from oneshot_lit.evaluation.judges.earlier import COUNTS, Kept, has_scores, judged_before
from oneshot_lit.evaluation.judges.predictions import (
    Row,
    choose_sets,
    file_digest,
    read_predictions,
)
from oneshot_lit.io.files import name_full_disk, write_text_atomically
from oneshot_lit.io.locking import results_locked
from oneshot_lit.io.metrics_file import add_scores, require_free
from oneshot_lit.io.runs import PRODUCTS

FOLDER = "judgments"


@dataclass(frozen=True)
class Outcome:
    """What judging gave: the mean scores, the facts beside them, and the file of the verdicts.

    `notes` say, in a line each, what of an earlier command is gone, or stays in spite of this one.
    """

    scores: dict[str, float]
    facts: dict[str, Any]
    file: Path
    notes: tuple[str, ...] = ()


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
    evaluation = f"judge/{judge.name}"
    facts: dict[str, Any] = {
        "judge": f"{type(judge).__module__}.{type(judge).__qualname__}",
        "version": judge.version,
        # As they will be read again, a tuple as a list.
        "settings": json.loads(json.dumps(judge.settings())),
        "predictions_sha256": file_digest(predictions),
    }
    if predictions.resolve() != (root / PRODUCTS["predict"]).resolve():
        facts["predictions"] = str(predictions)
    # Refused now rather than after all is judged and paid for.
    _require_places(judge, root)
    require_free(root, evaluation, [f"{name}/{m}" for name in chosen for m in judge.metrics])
    verdicts = _judge_distinct(judge, [r for of in chosen.values() for r in of], root, progress)

    target = root / FOLDER / f"{judge.name}.jsonl"
    found = {name: _said(judge, name, of, verdicts) for name, of in chosen.items()}
    # Another judge, or the same one on other sets, may end at the same moment.
    with results_locked(root):
        _require_something_judged(judge, verdicts, root, evaluation)
        before, lost = judged_before(root, evaluation, target, facts, judge.metrics)
        notes = _notes(judge.name, found, before, lost)
        stays = {n: kept for n, kept in before.items() if n not in found or _better(kept, found[n])}
        found |= stays
        # Sets that are not in the predictions any more are lost with their digest.
        found = {name: found[name] for name in dict.fromkeys(r.set for r in rows) if name in found}
        facts |= {key: {n: said.counts[key] for n, said in found.items()} for key in COUNTS}
        facts |= {"judgments": f"{FOLDER}/{target.name}", **judge.facts()}
        means = {key: mean for said in found.values() for key, mean in said.scores.items()}
        write_text_atomically(target, "".join(line for s in found.values() for line in s.lines))
        add_scores(root, evaluation, means, facts)
        _partial(root, judge).unlink(missing_ok=True)
    return Outcome(means, facts, target, tuple(notes))


def _said(judge: Judge, name: str, of: Sequence[Row], verdicts: Mapping[str, Verdict]) -> Kept:
    """Return what the results say of one set."""
    given = [verdicts[_key(row)] for row in of]
    counts = {
        "samples": len(of),
        "unjudged": dict(Counter(v.reason for v in given if v.reason is not None)),
        "empty_outputs": sum(not row.answer.output for row in of),
    }
    lines = [_line(row, verdict) for row, verdict in zip(of, given, strict=True)]
    return Kept(lines, counts, {f"{name}/{m}": _mean(given, m) for m in judge.metrics})


def _better(before: Kept, now: Kept) -> bool:
    """Whether an earlier command judged some of a set of which this one could judge nothing."""
    return before.judged and not now.judged


def _notes(
    judge: str, found: Mapping[str, Kept], before: Mapping[str, Kept], lost: Mapping[str, str]
) -> list[str]:
    notes = [
        f"'{name}': nothing could be judged this time; what {judge} said before stays."
        for name, kept in before.items()
        if name in found and _better(kept, found[name])
    ]
    for why in dict.fromkeys(lost.values()):
        names = [f"'{name}'" for name in lost if lost[name] == why and name not in found]
        if names:
            notes.append(
                f"dropped: the earlier verdicts and scores of {judge} on {', '.join(names)}, "
                f"{why}; judge them again with --sets."
            )
    return notes


def _require_places(judge: Judge, root: Path) -> None:
    """Refuse, before anything is judged, what the results could not be written to."""
    from oneshot_lit.evaluation.metrics.registry import METRICS

    for metric in judge.metrics:
        if metric in METRICS:
            raise OneShotError(
                f"judge.metric '{metric}': is the name of a metric of oneshot-lit test; give "
                "another."
            )
    folder = root / FOLDER
    if folder.exists() and not folder.is_dir():
        raise OneShotError(f"{folder}: is no folder, and the verdicts go there; move it away.")
    for path in (folder / f"{judge.name}.jsonl", _partial(root, judge)):
        if path.is_dir():
            raise OneShotError(f"{path}: is a folder, and the verdicts go there; move it away.")


def _require_something_judged(
    judge: Judge, verdicts: Mapping[str, Verdict], root: Path, evaluation: str
) -> None:
    """Refuse to replace scores by none, and to take an outage for a result."""
    reasons = Counter(verdict.reason for verdict in verdicts.values())
    if None in reasons:
        return
    outage = set(reasons) <= judge.passing
    if outage or has_scores(root, evaluation):
        # Else the same verdicts would be found by the next run.
        _partial(root, judge).unlink(missing_ok=True)
        said = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        mend = "run the same command again" if outage else "give another --judge.name and .metric"
        raise OneShotError(
            f"judge '{judge.name}': could judge none of {len(verdicts)} answers ({said}); "
            f"earlier verdicts and scores stay as they are; {mend}."
        )


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


def _identity(judge: Judge) -> str:
    """Return a hash of everything that may change a verdict."""
    kind = f"{type(judge).__module__}.{type(judge).__qualname__}"
    text = json.dumps([kind, judge.version, judge.metrics, judge.settings()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _read_partial(judge: Judge, root: Path) -> dict[str, Verdict]:
    """Return what a killed run with the same settings left; a line that was cut off is left out."""
    found: dict[str, Verdict] = {}
    identity = _identity(judge)
    try:
        lines = _partial(root, judge).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError):
        return {}
    for line in lines:
        try:
            row = json.loads(line)
            if row["settings"] == identity:
                found[str(row["key"])] = Verdict.from_dict(row, judge.metrics)
        except (ValueError, TypeError, KeyError):
            continue
    return found


class _PartialFile:
    """Verdicts as they are given, for a run that is killed; nothing if the judge keeps its own."""

    def __init__(self, judge: Judge, root: Path, found: dict[str, Verdict]) -> None:
        self.judge = judge
        self.path = _partial(root, judge)
        self.identity = _identity(judge)
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
        row = {"settings": self.identity, "key": key, **verdict.as_dict()}
        return json.dumps(row, ensure_ascii=False) + "\n"
