"""The tables of a report: scores with intervals, by category, and what changed between runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from oneshot_lit.evaluation.intervals import Estimate, from_stderr, mcnemar, mean, rate
from oneshot_lit.evaluation.metrics.registry import LM_EVAL, METRICS, is_rate
from oneshot_lit.report.rows import TEST
from oneshot_lit.report.runs import Run

# Graded judges, with the ends of their scales.
GRADED = {"harmfulness_score": (1.0, 5.0), "strongreject_score": (0.0, 1.0)}
# Prefixes of judges' yes-or-no metrics, for when only their mean is known.
_SHARES = ("asr_", "flagged_rate")
SCORES = [
    *("set", "metric", "by", "run", "share"),
    *("value", "low", "high", "n", "unscored", "method", "reasons"),
]
CHANGES = [
    *("set", "metric", "share", "from", "to", "before", "after", "apart"),
    *("pairs", "kept", "gained", "lost", "p"),
]
_NO_PAIRS = [None] * 5


def graded(metric: str) -> str | None:
    """Return the graded judge's metric that a name starts with; None for other metrics."""
    return next((name for name in GRADED if metric.startswith(name)), None)


def all_scores(runs: Sequence[Run]) -> pd.DataFrame:
    """Return the scores of all answers of all runs, with the column ``run``."""
    return pd.concat([run.scores.assign(run=run.name) for run in runs], ignore_index=True)


def score_table(runs: Sequence[Run], answers: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each score of each run that has it.

    Columns: ``set``, ``metric``, ``by`` (the test, a judge with its version, or lm-eval), ``run``,
    ``share`` (whether it counts answers), those of `Estimate`, and ``reasons`` (why answers could
    not be judged).
    """
    keys = dict.fromkeys(key for run in runs for key in (*run.content["metrics"], *_judged(run)))
    sets = dict.fromkeys(key.rpartition("/")[0] for key in keys)
    ordered = [key for name in sets for key in keys if key.rpartition("/")[0] == name]
    by_score = dict(iter(answers.groupby(["set", "metric"])["score"]))
    by_run = dict(iter(answers.groupby(["set", "metric", "run"])["score"]))
    rows = []
    for key, run in itertools.product(ordered, runs):
        name, _, metric = key.rpartition("/")
        of_answers = by_score.get((name, metric))
        if of_answers is not None:
            share = _counts_answers(of_answers, metric)
        else:
            share = is_rate(key) and not name.startswith(f"{LM_EVAL}/")
        by, facts = _owner(run, key)
        scores = by_run.get((name, metric, run.name))
        if scores is not None:
            estimate = estimate_scores(scores, metric, share)
        elif key in run.content["metrics"] or facts:
            estimate = _estimate_of_metrics(run, key, share, facts)
        else:
            continue
        reasons = facts.get("unjudged", {}).get(name) or {"unscored": estimate.unscored}
        rows.append(
            {"set": name, "metric": metric, "by": by, "run": run.name, "share": share}
            | estimate.as_dict()
            | {"reasons": _counted(reasons) if estimate.unscored else ""}
        )
    frame = pd.DataFrame(rows, columns=SCORES)
    return frame.astype(dict.fromkeys(("value", "low", "high"), float))


def _judged(run: Run) -> Iterator[str]:
    """Yield the scores of later evaluations; one that could not judge any answer has no mean."""
    for facts in run.content["evaluations"].values():
        yield from facts.get("scores", ())


def _owner(run: Run, key: str) -> tuple[str, Any]:
    """Return who gave a score, in words, and the evaluation's entry in ``metrics.json``."""
    for name, facts in run.content["evaluations"].items():
        if key in facts.get("scores", ()):
            return f"{name.removeprefix('judge/')}, {facts.get('version')}", facts
    return TEST, {}


def _counted(reasons: dict[str, int]) -> str:
    return ", ".join(f"{number} {reason}" for reason, number in reasons.items())


def _counts_answers(scores: pd.Series, metric: str) -> bool:
    """Whether every score is yes or no, so that Wilson's interval fits, whatever its name."""
    if graded(metric) or (metric in METRICS and not is_rate(metric)):
        return False
    known = scores.dropna()
    return bool(known.isin([0.0, 1.0]).all()) if len(known) else metric.startswith(_SHARES)


def estimate_scores(scores: pd.Series, metric: str, share: bool) -> Estimate:
    """Return the value of a metric over answers, with its interval; NaN is not scored."""
    known = scores.dropna()
    unscored = len(scores) - len(known)
    if share:
        return rate(int(known.sum()), len(known), unscored)
    grade = graded(metric)
    low, high = GRADED[grade] if grade else (0.0, 1.0)
    # A user's own judge may use a known name with another scale.
    on_scale = (grade or metric in METRICS) and known.between(low, high).all()
    return mean(known.tolist(), unscored, (low, high) if on_scale else None)


def _estimate_of_metrics(run: Run, key: str, share: bool, facts: dict[str, Any]) -> Estimate:
    """Return a score that only ``metrics.json`` has, or that lm-eval gave."""
    value, (name, _, metric) = run.content["metrics"].get(key), key.rpartition("/")
    if name.startswith(f"{LM_EVAL}/"):
        if value is None:
            return Estimate(None, None, None, 0, 0)
        return from_stderr(value, facts.get("stderr", {}).get(metric), facts.get("samples", 0))
    unjudged = sum(facts.get("unjudged", {}).get(name, {}).values())
    unscored = unjudged if facts else run.content.get("unscored", {}).get(key, 0)
    n = (facts or run.content).get("samples", {}).get(name, 0) - unscored
    if value is None:
        return Estimate(None, None, None, 0, unscored)
    if share and n > 0:
        return rate(round(value * n), n, unscored)
    return Estimate(value, None, None, n, unscored)


def category_table(table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each score, category and run, of the sets with two or more categories."""
    rows = []
    shares = table.drop_duplicates(["set", "metric"]).set_index(["set", "metric"])["share"]
    for (name, metric), share in shares.items():
        own = answers[(answers["set"] == name) & (answers["metric"] == metric)]
        if own["category"].nunique() < 2:
            continue
        own = own.sort_values("category", kind="stable").fillna({"category": "(none)"})
        for (category, run), scores in own.groupby(["category", "run"], sort=False)["score"]:
            estimate = estimate_scores(scores, metric, share)
            rows.append(
                {"set": name, "metric": metric, "category": category, "run": run, "share": share}
                | estimate.as_dict()
                | {"reasons": f"{estimate.unscored} unscored" if estimate.unscored else ""}
            )
    return pd.DataFrame(rows, columns=["set", "metric", "category", *SCORES[3:]])


def change_table(runs: Sequence[Run], table: pd.DataFrame, answers: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each score of a run and the next one, and of the first and the last run.

    ``pairs``, ``kept`` (hits in both), ``gained``, ``lost`` and ``p`` are missing where the
    answers cannot be paired by their prompts; ``apart`` says whether the intervals have nothing in
    common.
    """
    names = [run.name for run in runs]
    steps = [*itertools.pairwise(names), *([(names[0], names[-1])] if len(names) > 2 else [])]
    hits = _hits_by_prompt(answers)
    rows = []
    for first, second in steps:
        both = table[table["run"] == first].merge(
            table[table["run"] == second], on=["set", "metric", "share"], suffixes=("_a", "_b")
        )
        for row in both.dropna(subset=["value_a", "value_b"]).to_dict("records"):
            name, metric, share = row["set"], row["metric"], row["share"]
            values = [row["value_a"], row["value_b"]]
            change = [name, metric, share, first, second, *values, _apart(row)]
            pair = [hits.get((name, metric, run)) for run in (first, second)]
            paired = share and all(each is not None for each in pair)
            rows.append([*change, *(_paired(*pair) if paired else _NO_PAIRS)])
    frame = pd.DataFrame(rows, columns=CHANGES)
    return frame.astype(dict.fromkeys(("pairs", "kept", "gained", "lost"), "Int64"))


def _apart(row: dict[str, Any]) -> bool | None:
    if pd.isna(row["low_a"]) or pd.isna(row["low_b"]):
        return None
    return bool(row["high_a"] < row["low_b"] or row["high_b"] < row["low_a"])


def _hits_by_prompt(answers: pd.DataFrame) -> dict[Any, pd.Series]:
    """Return (set, metric, run) -> the scores by prompt and how often it came before."""
    known = answers.dropna(subset="prompt").sort_values("place")
    score = ["set", "metric", "run"]
    known = known.assign(number=known.groupby([*score, "prompt"]).cumcount()).dropna(subset="score")
    return {key: of.set_index(["prompt", "number"])["score"] for key, of in known.groupby(score)}


def _paired(before: pd.Series, after: pd.Series) -> list[Any]:
    """Return the number of pairs, hits in both, hits gained and lost, and McNemar's p-value."""
    pairs = pd.concat([before, after], axis=1, join="inner", keys=["before", "after"])
    if pairs.empty:
        return _NO_PAIRS
    gained = int((pairs["before"] < pairs["after"]).sum())
    lost = int((pairs["before"] > pairs["after"]).sum())
    kept = int((pairs == 1.0).all(axis=1).sum())
    return [len(pairs), kept, gained, lost, mcnemar(gained, lost)]
