"""Every score of every run with its interval, by set and by category."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.intervals import Estimate, from_stderr, mean, rate
from oneshot_lit.evaluation.metrics.registry import LM_EVAL, METRICS, is_rate
from oneshot_lit.io.metrics_file import METRICS_FILE
from oneshot_lit.report.rows import Scored
from oneshot_lit.report.runs import Run, alike

# Graded judges, with the ends of their scales; other judges' metrics begin with one of _SHARES.
GRADED = {"harmfulness_score": (1.0, 5.0), "strongreject_score": (0.0, 1.0)}
_SHARES = ("asr_", "flagged_rate")


def split(key: str) -> tuple[str, str]:
    """Return the set and the metric of a key."""
    owner, _, metric = key.rpartition("/")
    return owner, metric


def keys(runs: Sequence[Run]) -> list[str]:
    """Return every ``<set>/<metric>`` in the order in which the runs name them.

    Metrics of which no answer could be judged stand in no mean; they are named all the same.
    """
    found = dict.fromkeys(key for run in runs for key in run.metrics)
    for run in runs:
        found |= dict.fromkeys(k for of in run.content["evaluations"].values() for k in _of(of))
    sets = list(dict.fromkeys(split(key)[0] for key in found))
    return sorted(found, key=lambda key: sets.index(split(key)[0]))


def _of(facts: Mapping[str, Any]) -> Sequence[str]:
    return facts.get("scores", ())


def rows_of(run: Run, key: str) -> list[Scored]:
    """Return the rows that hold a metric's scores answer by answer; [] if no file has them."""
    name, metric = split(key)
    for sets in (run.outcomes, *run.judgments.values()):
        rows = sets.get(name, [])
        if rows and metric in rows[0].scores:
            return rows
    return []


def graded(metric: str) -> tuple[float, float] | None:
    """Return the ends of a graded judge's scale; None for other metrics."""
    return next((scale for name, scale in GRADED.items() if metric.startswith(name)), None)


def is_share(key: str, runs: Sequence[Run]) -> bool:
    """Whether a score counts answers, so that Wilson's interval fits it."""
    owner, metric = split(key)
    if owner.startswith(f"{LM_EVAL}/") or graded(metric) is not None:
        return False
    if metric in METRICS and not is_rate(key):
        return False
    # A score counts answers if every one says yes or no, whatever its name.
    scores = {s for run in runs for r in rows_of(run, key) if (s := r.scores[metric]) is not None}
    if scores:
        return scores <= {0.0, 1.0}
    # Without rows only the name and the mean are there to tell.
    means = [value for run in runs if (value := run.metrics.get(key)) is not None]
    named = metric in METRICS or metric.startswith(_SHARES)
    return named and all(0 <= value <= 1 for value in means)


def estimate_rows(rows: Sequence[Scored], metric: str, share: bool) -> Estimate:
    """Return a metric's value over rows, with its interval."""
    scores = [s for row in rows if (s := row.scores.get(metric)) is not None]
    unscored = len(rows) - len(scores)
    if share:
        return rate(sum(s == 1.0 for s in scores), len(scores), unscored)
    bounds = (0.0, 1.0) if metric in METRICS else graded(metric)
    # A user's judge may take a known name for a scale of its own.
    if bounds and not all(bounds[0] <= score <= bounds[1] for score in scores):
        bounds = None
    return mean(scores, unscored, bounds)


def estimate(run: Run, key: str, share: bool) -> Estimate | None:
    """Return a run's value of a metric; None if the run does not have it.

    Raises:
        OneShotError: if its rows give another value than ``metrics.json``.
    """
    value, (name, metric) = run.metrics.get(key), split(key)
    if rows := rows_of(run, key):
        found = estimate_rows(rows, metric, share)
        if not alike(found.value, value):
            raise OneShotError(
                f"{run.folder / METRICS_FILE}: '{key}' is {value} and its rows give {found.value}; "
                "run oneshot-lit test or judge again."
            )
        return found
    facts = next((of for of in run.content["evaluations"].values() if key in _of(of)), None)
    if name.startswith(f"{LM_EVAL}/") and facts is not None:
        if value is None:
            return Estimate(None, None, None, 0, 0)
        return from_stderr(value, facts.get("stderr", {}).get(metric), facts.get("samples", 0))
    if facts is not None:
        unscored = sum(facts.get("unjudged", {}).get(name, {}).values())
        n = facts.get("samples", {}).get(name, 0) - unscored
    else:
        unscored = run.content.get("unscored", {}).get(key, 0)
        n = run.content.get("samples", {}).get(name, 0) - unscored
    if value is None:
        return None if facts is None else Estimate(None, None, None, 0, unscored)
    hits = round(value * n)
    if share and n > 0 and 0 <= hits <= n and math.isclose(hits / n, value, abs_tol=1e-6):
        return rate(hits, n, unscored)
    return Estimate(value, None, None, n, unscored)


def score_table(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return a row for each metric: ``key``, ``set``, ``metric``, ``share``, ``runs``."""
    table = []
    for key in keys(runs):
        name, metric = split(key)
        share = is_share(key, runs)
        found = {run.name: estimate(run, key, share) for run in runs}
        cells = {n: None if e is None else e.as_dict() for n, e in found.items()}
        table.append({"key": key, "set": name, "metric": metric, "share": share, "runs": cells})
    return table


def category_tables(
    runs: Sequence[Run], table: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return a table for each metric of a set with two or more categories."""
    found = []
    for row in table:
        key, metric, share = row["key"], row["metric"], row["share"]
        by_run = {run.name: rows_of(run, key) for run in runs}
        names = dict.fromkeys(
            r.category for rows in by_run.values() for r in rows if r.category is not None
        )
        if len(names) < 2:
            continue
        categories: list[str | None] = [*sorted(names)]
        if any(r.category is None for rows in by_run.values() for r in rows):
            categories.append(None)
        lines = [
            {
                "category": "(none)" if category is None else category,
                "runs": {
                    name: _cell(rows, category, metric, share) for name, rows in by_run.items()
                },
            }
            for category in categories
        ]
        found.append({**{k: row[k] for k in ("key", "set", "metric", "share")}, "rows": lines})
    return found


def _cell(
    rows: Sequence[Scored], category: str | None, metric: str, share: bool
) -> dict[str, Any] | None:
    mine = [row for row in rows if row.category == category]
    return estimate_rows(mine, metric, share).as_dict() if mine else None
