"""Whether an answer of ``predictions.jsonl`` can be the one that the test scored."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Sequence
from typing import Any

from oneshot_lit.evaluation.judges.predictions import Row
from oneshot_lit.evaluation.metrics.refusal import PHRASE_LIST_VERSION
from oneshot_lit.evaluation.metrics.registry import METRICS
from oneshot_lit.report.rows import Scored
from oneshot_lit.report.runs import Run
from oneshot_lit.report.settings import other_settings

OTHER = "other"
# Metrics that look for refusal phrases: another list would find others in the same answer.
_OF_PHRASES = ("asr_keyword", "asr_keyword_prefix", "over_refusal", "harmful_correct")
# Another version of these may score the same answer otherwise.
_PACKAGES = ("oneshot-lit", "torchmetrics", "sqlglot")


def answers_of_test(run: Run) -> dict[tuple[str, int], str]:
    """Return (set, index) -> digest of prompt and answer, as far as predictions tell.

    The test keeps no answers. Where `predict` ran with other settings, or the prompt or what is
    known of the test's answer (empty or not, its scores) does not fit the prediction, the digest is
    `OTHER`; for sampled answers there is none.
    """
    if run.sampled:
        return {}
    if other_settings(run):
        return {(row.set, row.index): OTHER for rows in run.outcomes.values() for row in rows}
    found: dict[tuple[str, int], str] = {}
    for name, rows in run.outcomes.items():
        outcomes = {row.index: row for row in rows}
        pairs = [
            (r, outcomes[r.index]) for r in run.predictions if r.set == name and r.index in outcomes
        ]
        fits = [
            row.prompt_digest() == outcome.prompt and outcome.empty == (not row.answer.output)
            for row, outcome in pairs
        ]
        for metric in _repeatable(run, rows[0]):
            fits = [
                before and _alike(outcome.scores[metric], again)
                for before, (_, outcome), again in zip(
                    fits, pairs, _scores(metric, [row for row, _ in pairs]), strict=True
                )
            ]
        for (row, _), fit in zip(pairs, fits, strict=True):
            found[name, row.index] = row.answer.digest() if fit else OTHER
    return found


def _repeatable(run: Run, row: Scored) -> list[str]:
    """Return the metrics of a set that score now as they did in the test."""
    known = run.content.get("versions")
    known = known if isinstance(known, dict) else {}
    same_versions = all(known.get(name) in (None, _version(name)) for name in _PACKAGES)
    same_list = run.content.get("phrase_list") == PHRASE_LIST_VERSION
    return [
        name
        for name in row.scores
        if name in METRICS and (same_list if name in _OF_PHRASES else same_versions)
    ]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _scores(metric: str, rows: Sequence[Row]) -> list[Any]:
    """Return a metric's score of each answer; `OTHER` where no reference can be compared with."""
    scorer = METRICS[metric]()
    ready = [
        row
        for row in rows
        if not scorer.needs_references
        or (row.reference is not None and scorer.reference_problem(row.reference) is None)
    ]
    given = scorer.scores([r.answer.output for r in ready], [r.reference for r in ready])
    found = {id(row): score for row, score in zip(ready, given, strict=True)}
    return [found.get(id(row), OTHER) for row in rows]


def _alike(said: float | None, again: Any) -> bool:
    if again == OTHER:
        # Nothing to compare with speaks neither for nor against.
        return True
    if said is None or math.isnan(again):
        return said is None and math.isnan(again)
    return math.isclose(said, again, abs_tol=1e-6)
