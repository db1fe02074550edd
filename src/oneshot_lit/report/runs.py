"""Reads the output of a run: scores, judgments, and answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from oneshot_lit.callbacks.metrics_writer import OUTCOMES_FILE
from oneshot_lit.callbacks.realignment_curve import CURVE_PICTURE
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges.judging import FOLDER
from oneshot_lit.evaluation.judges.predictions import Row, read_predictions
from oneshot_lit.io.metrics_file import METRICS_FILE, read_metrics
from oneshot_lit.io.read_files import read_jsonl
from oneshot_lit.io.runs import PRODUCTS
from oneshot_lit.report.text import map_texts, visible

# What scored an answer: the test, or else the name of a judge.
TEST = "test"
# `place` is the index of the prompt in its set; `prompt` and `digest` are hashes of the prompt,
# and of prompt and answer.
COLUMNS = ["by", "metric", "score", "set", "place", "category", "prompt", "digest", "reason"]


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: Its name in the report.
        folder: The folder.
        content: Its ``metrics.json``.
        scores: A row for each answer and metric, with the columns `COLUMNS`.
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
    path = folder / METRICS_FILE
    if not path.is_file():
        raise OneShotError(
            f"{path}: missing; run oneshot-lit test with this folder as "
            "--trainer.default_root_dir, or check --runs."
        )
    content = map_texts(read_metrics(folder), visible)
    samples = content.get("samples", {})
    scores = [_read_scores(folder / OUTCOMES_FILE, TEST, samples)]
    notes = []
    for file in sorted((folder / FOLDER).glob("[!.]*.jsonl")):
        facts = content["evaluations"].get(f"judge/{file.stem}")
        if facts is None:
            # A later test has replaced metrics.json, and may have other answers.
            notes.append(
                f"{name}: the judgments of '{file.stem}' are left out, because metrics.json does "
                "not have them; judge again."
            )
            continue
        scores.append(_read_scores(file, file.stem, facts.get("samples", {})))
    if missing := sorted(set(samples) - set(scores[0]["set"])):
        raise OneShotError(
            f"{folder / OUTCOMES_FILE}: has no row of '{missing[0]}'; run oneshot-lit test again."
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


def _read_scores(path: Path, by: str, samples: Mapping[str, int]) -> pd.DataFrame:
    """Return the scores of ``outcomes.jsonl`` or of a judge; an empty table without a file.

    Rows of other counts than ``metrics.json`` has belong to another test.
    """
    again = f"run oneshot-lit {'test' if by == TEST else 'judge'} again"
    records = []
    for number, raw in read_jsonl(path) if path.is_file() else ():
        row = map_texts(raw, visible)
        try:
            facts = {"by": by, "set": row["set"], "place": int(row["index"])}
            scores = {k: math.nan if v is None else float(v) for k, v in row["scores"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise OneShotError(
                f"{path} row {number}: needs 'set', a whole number 'index' and 'scores' that are "
                f"numbers or null; {again}."
            ) from error
        facts |= {key: row.get(key) for key in ("category", "prompt", "digest", "reason")}
        records += [{**facts, "metric": metric, "score": s} for metric, s in scores.items()]
    table = pd.DataFrame(records, columns=COLUMNS).astype({"score": float})
    for (name, _), values in table.groupby(["set", "metric"])["score"]:
        if len(values) != samples.get(name):
            raise OneShotError(
                f"{path}: has {len(values)} rows of '{name}' and metrics.json counts "
                f"{samples.get(name, 0)}; {again}."
            )
    return table
