"""Reading what a run has left: scores, the outcome of each prompt, judgments, the curve."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oneshot_lit.callbacks.realignment_curve import CURVE_TABLE
from oneshot_lit.data.read_files import read_jsonl
from oneshot_lit.errors import OneShotError
from oneshot_lit.judges.judging import FOLDER
from oneshot_lit.judges.predictions import Row, read_predictions
from oneshot_lit.metrics_file import METRICS_FILE, read_metrics
from oneshot_lit.report.text import visible
from oneshot_lit.runs import PRODUCTS
from oneshot_lit.study.results import read_curve

OUTCOMES = "outcomes.jsonl"


@dataclass(frozen=True)
class Scored:
    """How the answer to one prompt was scored, by the test or by a judge.

    Attributes:
        set: Name of the prompt set.
        index: Place of the prompt in its set.
        category: Its category, if known.
        scores: Metric -> score, None where it could not be told.
        kind: Kind of the set; only the test knows it.
        digest: Of the prompt (test), or of prompt and output (judge).
        reason: Why a judge could not tell.
        empty: Whether the answer is empty; only the test knows it.
    """

    set: str
    index: int
    category: str | None
    scores: Mapping[str, float | None]
    kind: str | None = None
    digest: str = ""
    reason: str | None = None
    empty: bool | None = None


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: What the report calls it.
        folder: The folder.
        content: Its ``metrics.json``.
        outcomes: Set -> what the test says of each of its prompts; {} for older runs.
        judgments: Judge -> set -> what it says of each answer.
        predictions: The answers themselves, for examples only.
        curve: The rows of ``realignment.csv``.
        notes: What was left out, in sentences.
    """

    name: str
    folder: Path
    content: Mapping[str, Any]
    outcomes: Mapping[str, list[Scored]] = field(default_factory=dict)
    judgments: Mapping[str, Mapping[str, list[Scored]]] = field(default_factory=dict)
    predictions: tuple[Row, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def metrics(self) -> Mapping[str, float]:
        """``<set>/<metric>`` -> value."""
        return self.content["metrics"]

    @property
    def judges(self) -> dict[str, Mapping[str, Any]]:
        """Judge -> what ``metrics.json`` says of it."""
        evaluations = self.content["evaluations"].items()
        return {n[6:]: facts for n, facts in evaluations if n.startswith("judge/")}

    @property
    def sampled(self) -> bool:
        """Whether answers were drawn at random: those of `predict` are others than the test's."""
        return bool((self.content.get("decoding") or {}).get("do_sample"))

    @property
    def samples(self) -> dict[str, int]:
        """Prompt set -> number of prompts, of the test and else of the judges."""
        found: dict[str, int] = {}
        for facts in self.judges.values():
            found |= facts.get("samples", {})
        return found | dict(self.content.get("samples", {}))


def read_run(name: str, folder: Path) -> Run:
    """Read a run folder.

    Raises:
        OneShotError: naming the file, and the row to mend.
    """
    if not folder.is_dir():
        raise OneShotError(f"{folder}: no such folder; check --runs.")
    if not (folder / METRICS_FILE).is_file():
        raise OneShotError(
            f"{folder / METRICS_FILE}: missing; run oneshot-lit test with this folder as "
            "--trainer.default_root_dir, or leave the run out."
        )
    content = _visible(read_metrics(folder))
    run = Run(name, folder, content)
    outcomes = _by_set(_read(folder / OUTCOMES, content.get("samples", {}), "test"))
    judgments, notes = {}, []
    for path in sorted((folder / FOLDER).glob("[!.]*.jsonl")):
        facts = run.judges.get(path.stem)
        if facts is None:
            # A later test writes metrics.json anew, and its answers may be others.
            notes.append(
                f"{name}: the judgments of '{path.stem}' are left out, because metrics.json does "
                "not have them; judge again."
            )
            continue
        judgments[path.stem] = _by_set(_read(path, facts.get("samples", {}), "judge"))
    predictions = folder / PRODUCTS["predict"]
    rows = tuple(
        replace(row, set=visible(row.set))
        for row in (read_predictions(predictions) if predictions.is_file() else ())
    )
    try:
        curve = tuple(read_curve(folder))
        if any("step" not in row or "kept" not in row for row in curve):
            raise ValueError
    except (ValueError, TypeError, AttributeError) as error:
        raise OneShotError(
            f"{folder / CURVE_TABLE}: is not what a realignment writes; remove it."
        ) from error
    found = Run(name, folder, content, outcomes, judgments, rows, curve, tuple(notes))
    _require_consistent(found)
    return found


def _visible(value: Any) -> Any:
    """Return JSON whose names and texts steer no terminal."""
    if isinstance(value, dict):
        return {visible(key): _visible(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_visible(v) for v in value]
    return visible(value) if isinstance(value, str) else value


def _by_set(rows: list[Scored]) -> dict[str, list[Scored]]:
    found: dict[str, list[Scored]] = {}
    for row in rows:
        found.setdefault(row.set, []).append(row)
    return found


def _read(path: Path, samples: Mapping[str, int], verb: str) -> list[Scored]:
    """Return the rows of a file of outcomes or judgments; [] without one."""
    if not path.is_file():
        return []
    rows: list[Scored] = []
    seen: set[tuple[str, int]] = set()
    for number, content in read_jsonl(path):
        row = _row(content, f"{path} row {number}", verb)
        if (row.set, row.index) in seen:
            raise OneShotError(
                f"{path} row {number}: prompt {row.index} of '{row.set}' is there twice; run "
                f"oneshot-lit {verb} again."
            )
        seen.add((row.set, row.index))
        rows.append(row)
    for name, of in _by_set(rows).items():
        if samples.get(name) != len(of):
            raise OneShotError(
                f"{path}: has {len(of)} rows of '{name}' and metrics.json counts "
                f"{samples.get(name, 0)}; run oneshot-lit {verb} again."
            )
    return rows


def _row(content: Mapping[str, Any], origin: str, verb: str) -> Scored:
    digest = "prompt" if verb == "test" else "digest"
    wanted: dict[str, Any] = {"set": str, "index": int, "scores": dict, digest: str}
    if verb == "test":
        wanted |= {"kind": str, "empty": bool}
    for key, kind in wanted.items():
        if type(content.get(key)) is not kind:
            raise OneShotError(f"{origin}: '{key}' is missing or wrong; run oneshot-lit {verb}.")
    for metric, score in content["scores"].items():
        number = isinstance(score, (int, float)) and not isinstance(score, bool)
        if score is not None and not (number and math.isfinite(score)):
            raise OneShotError(f"{origin}: '{metric}' must be a number or null; mend it.")
    category, reason = content.get("category"), content.get("reason")
    return Scored(
        set=visible(content["set"]),
        index=content["index"],
        category=None if category is None else visible(str(category)),
        scores=_visible(content["scores"]),
        kind=content.get("kind"),
        digest=content[digest],
        reason=None if reason is None else visible(str(reason)),
        empty=content.get("empty"),
    )


def _alike(a: float | None, b: float | None) -> bool:
    return a is b if a is None or b is None else math.isclose(a, b, abs_tol=1e-6)


def _require_consistent(run: Run) -> None:
    """Refuse rows that give other means than ``metrics.json``: they are of another test."""
    files = {OUTCOMES: run.outcomes}
    files |= {f"{FOLDER}/{name}.jsonl": of for name, of in run.judgments.items()}
    for file, sets in files.items():
        for name, rows in sets.items():
            for metric in rows[0].scores:
                scores = [s for row in rows if (s := row.scores.get(metric)) is not None]
                said = run.metrics.get(f"{name}/{metric}")
                found = math.fsum(scores) / len(scores) if scores else None
                if not _alike(said, found):
                    verb = "test" if file == OUTCOMES else "judge"
                    raise OneShotError(
                        f"{run.folder / file}: its mean of {name}/{metric} is {found} and "
                        f"metrics.json says {said}; run oneshot-lit {verb} again."
                    )
