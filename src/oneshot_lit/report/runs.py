"""Reading what a run has left: scores, the outcome of each prompt, judgments, the curve."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oneshot_lit.callbacks.realignment_curve import CURVE_TABLE, read_curve
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.judging import FOLDER
from oneshot_lit.evaluation.judges.predictions import Row, read_predictions
from oneshot_lit.io.metrics_file import METRICS_FILE, read_metrics
from oneshot_lit.io.runs import PRODUCTS, recorded_runs
from oneshot_lit.report.rows import Scored, read_rows
from oneshot_lit.report.schema import require_readable
from oneshot_lit.report.text import visible

OUTCOMES = "outcomes.jsonl"


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
        made_by: Command -> the settings of ``run.json`` that it ran with.
        notes: What was left out, in sentences.
    """

    name: str
    folder: Path
    content: Mapping[str, Any]
    outcomes: Mapping[str, list[Scored]] = field(default_factory=dict)
    judgments: Mapping[str, Mapping[str, list[Scored]]] = field(default_factory=dict)
    predictions: tuple[Row, ...] = ()
    curve: tuple[Mapping[str, float], ...] = ()
    made_by: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
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
    content = read_metrics(folder)
    require_readable(content, folder)
    content = _visible(content, folder / METRICS_FILE)
    run = Run(name, folder, content)
    outcomes = read_rows(folder / OUTCOMES, content.get("samples", {}), "test")
    predictions = folder / PRODUCTS["predict"]
    rows = tuple(
        replace(row, set=visible(row.set))
        for row in (read_predictions(predictions) if predictions.is_file() else ())
    )
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
        judged = read_rows(path, facts.get("samples", {}), "judge")
        judgments[path.stem] = _with_prompts(judged, rows)
    try:
        # A loss may be missing or no number; JSON has none for it.
        curve = tuple(
            {key: value for key, value in row.items() if math.isfinite(value)}
            for row in read_curve(folder)
        )
        drawn = {"step", "kept", *(key for row in curve for key in row if "/" in key)}
        if any(drawn - row.keys() for row in curve):
            raise ValueError
    except (ValueError, TypeError, AttributeError) as error:
        raise OneShotError(
            f"{folder / CURVE_TABLE}: is not what a realignment writes; remove it."
        ) from error
    made_by = {command: run.get("config") for command, run in recorded_runs(folder).items()}
    made_by = {command: config for command, config in made_by.items() if isinstance(config, dict)}
    found = Run(name, folder, content, outcomes, judgments, rows, curve, made_by, tuple(notes))
    _require_consistent(found)
    return found


def _visible(value: Any, path: Path) -> Any:
    """Return JSON whose names and texts steer no terminal."""
    if isinstance(value, dict):
        found = {visible(key): _visible(v, path) for key, v in value.items()}
        if len(found) != len(value):
            keys = [visible(key) for key in value]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise OneShotError(
                f"{path}: two keys can only be shown as '{twice}'; name the sets apart and run "
                "oneshot-lit test again."
            )
        return found
    if isinstance(value, list):
        return [_visible(v, path) for v in value]
    return visible(value) if isinstance(value, str) else value


def _with_prompts(
    judged: Mapping[str, list[Scored]], predictions: Sequence[Row]
) -> dict[str, list[Scored]]:
    """Fill in the digests of prompts that older judgments lack, from the same answers."""
    if all(row.prompt is not None for of in judged.values() for row in of):
        return dict(judged)
    known = {(r.set, r.index, r.answer.digest()): r.prompt_digest() for r in predictions}

    def filled(row: Scored) -> Scored:
        place = (row.set, row.index, row.digest or "")
        return row if row.prompt is not None else replace(row, prompt=known.get(place))

    return {name: [filled(row) for row in of] for name, of in judged.items()}


def alike(a: float | None, b: float | None) -> bool:
    """Whether two values of a metric are the same, rounding apart; None is like None only."""
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
                if not alike(said, found):
                    verb = "test" if file == OUTCOMES else "judge"
                    raise OneShotError(
                        f"{run.folder / file}: its mean of {name}/{metric} is {found} and "
                        f"metrics.json says {said}; run oneshot-lit {verb} again."
                    )
