"""Reads the output of a run: scores, judgments, and answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from oneshot_lit.callbacks.outcomes import OUTCOMES_FILE
from oneshot_lit.callbacks.realignment_curve import CURVE_PICTURE
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.judging import FOLDER
from oneshot_lit.evaluation.judges.predictions import Row, read_predictions
from oneshot_lit.io.metrics_file import METRICS_FILE, read_metrics
from oneshot_lit.io.runs import PRODUCTS
from oneshot_lit.report.rows import TEST, read_scores
from oneshot_lit.report.schema import require_readable
from oneshot_lit.report.text import map_texts, visible


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: Its name in the report.
        folder: The folder.
        content: Its ``metrics.json``.
        scores: A row for each answer and metric, see `read_scores`.
        predictions: The answers themselves, for examples only.
        curve: The picture of its realignment, if there is one.
        notes: What was left out, in sentences.
    """

    name: str
    folder: Path
    content: Mapping[str, Any]
    scores: pd.DataFrame
    predictions: tuple[Row, ...] = ()
    curve: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def judges(self) -> dict[str, Mapping[str, Any]]:
        """Judge -> its entry in ``metrics.json``."""
        evaluations = self.content["evaluations"].items()
        return {name[6:]: facts for name, facts in evaluations if name.startswith("judge/")}

    @property
    def samples(self) -> dict[str, int]:
        """Prompt set -> number of prompts that the test answered."""
        return dict(self.content.get("samples", {}))


def read_run(name: str, folder: Path) -> Run:
    """Read a run folder.

    Raises:
        OneShotError: naming the file and the faulty row or key.
    """
    if not folder.is_dir():
        raise OneShotError(f"{folder}: no such folder; check --runs.")
    if not (folder / METRICS_FILE).is_file():
        raise OneShotError(
            f"{folder / METRICS_FILE}: missing; run oneshot-lit test with this folder as "
            "--trainer.default_root_dir, or leave the run out."
        )
    content = map_texts(read_metrics(folder), visible)
    require_readable(content, folder)
    scores = [read_scores(folder / OUTCOMES_FILE, TEST, content.get("samples", {}))]
    _require_same_means(scores[0], content, folder / OUTCOMES_FILE)
    notes = []
    for path in sorted((folder / FOLDER).glob("[!.]*.jsonl")):
        facts = content["evaluations"].get(f"judge/{path.stem}")
        if facts is None:
            # A later test has replaced metrics.json, and may have other answers.
            notes.append(
                f"{name}: the judgments of '{path.stem}' are left out, because metrics.json does "
                "not have them; judge again."
            )
            continue
        scores.append(read_scores(path, path.stem, facts.get("samples", {})))
        _require_same_means(scores[-1], content, path)
    missing = set(content.get("samples", {})) - set(scores[0]["set"])
    if missing:
        notes.append(
            f"{name}: no outcomes of {', '.join(sorted(missing))}, so there is no table by "
            "category, no paired test and no check of the prompts; run oneshot-lit test again."
        )
    predictions = folder / PRODUCTS["predict"]
    return Run(
        name,
        folder,
        content,
        pd.concat([each for each in scores if len(each)] or scores[:1], ignore_index=True),
        tuple(read_predictions(predictions)) if predictions.is_file() else (),
        curve if (curve := folder / CURVE_PICTURE).is_file() else None,
        tuple(notes),
    )


def _require_same_means(scores: pd.DataFrame, content: Mapping[str, Any], path: Path) -> None:
    """Refuse rows that give other means than ``metrics.json``: they belong to another test."""
    for (name, metric), values in scores.groupby(["set", "metric"])["score"]:
        said = content["metrics"].get(f"{name}/{metric}")
        mean = values.mean()
        same = said is None if math.isnan(mean) else said is not None
        if not same or (said is not None and not math.isclose(said, mean, abs_tol=1e-6)):
            verb = "test" if path.name == OUTCOMES_FILE else "judge"
            raise OneShotError(
                f"{path}: its mean of {name}/{metric} is {mean} and metrics.json says {said}; "
                f"run oneshot-lit {verb} again."
            )
