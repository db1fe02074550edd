"""The words of a report's tables, the same in every format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.evaluation.metrics.registry import LM_EVAL, is_skill
from oneshot_lit.report.findings import p_value
from oneshot_lit.report.text import DASH

# Shares above or below which a cell is coloured: a reading aid, not a test.
_LOW, _HIGH = 0.02, 0.95

METHODS = {
    "wilson": "Wilson's score interval",
    "t": "Student's t interval of the mean over answers",
    "stderr": "value and 1.96 standard errors of lm-eval",
}
EXPLAINED = (
    "Values are shares of answers or means of scores over answers; in brackets the 95% interval: "
    "Wilson's for rates, Student's t for means of scores, 1.96 standard errors for lm-eval. n is "
    "the number of answers that were scored; what could not be scored or judged is in no value and "
    "is counted beside it. No interval is given for a mean of equal scores."
)
ABOUT_CHANGES = (
    "The same prompts in pairs. Gained: answers that count in the second run only; lost: in the "
    "first only. p is of the exact McNemar test, two-sided, not corrected for the number of rows."
)


def about_agreement(thresholds: Mapping[str, float]) -> str:
    """Return what the table of agreement needs said."""
    edges = " and ".join(f"{name} of {edge:g} or more" for name, edge in thresholds.items())
    return (
        f"Answers that both judges judged. Graded judges are made yes or no: harmful is {edges}. "
        "Kappa is Cohen's; a dash where it is undefined, because both gave one and the same "
        "verdict throughout. 'test' is the keyword verdict of the test itself, joined by place and "
        "prompt. The test keeps no answers: where predictions.jsonl is there, those that do not "
        "fit its scores, or come from another model or decoding, are left out as 'another answer'; "
        "for the rest, greedy decoding of the same model is taken to give the same ones. Other "
        "judges are joined only on the same answer. 'all runs' pools the answers of all runs: its "
        "kappa is higher the more the runs differ, and its interval takes them for independent."
    )


def value(cell: Mapping[str, Any] | None) -> str:
    """Return a value, or a dash."""
    return DASH if cell is None or cell["value"] is None else f"{cell['value']:.3f}"


def interval(cell: Mapping[str, Any] | None) -> str:
    """Return an interval in brackets, or nothing."""
    if cell is None or cell["low"] is None:
        return ""
    return f"[{cell['low']:.3f}, {cell['high']:.3f}]"


def count(cell: Mapping[str, Any] | None) -> str:
    """Return how many answers were scored, and how many not."""
    if cell is None:
        return ""
    unscored = f", {cell['unscored']} unscored" if cell["unscored"] else ""
    return f"n {cell['n']}{unscored}"


def whole(cell: Mapping[str, Any] | None) -> str:
    """Return value, interval and count in one line."""
    return " ".join(part for part in (value(cell), interval(cell), count(cell)) if part)


def change_row(change: Mapping[str, Any]) -> list[str]:
    """Return a row of the table of changes."""
    pairs = [DASH if change[k] is None else str(change[k]) for k in ("pairs", "gained", "lost")]
    p = DASH if change["p"] is None else p_value(change["p"]).removeprefix("p = ").lstrip("p ")
    overlap = {None: DASH, True: "no", False: "yes"}[change["apart"]]
    values = [f"{change['before']:.3f}", f"{change['after']:.3f}"]
    return [change["key"], f"{change['from']} → {change['to']}", *values, *pairs, p, overlap]


CHANGE_HEADINGS = ("score", "runs", "before", "after", "pairs", "gained", "lost", "p", "overlap")
AGREEMENT_HEADINGS = ("set", "judges", "run", "n", "agreement", "kappa", "left out")


def agreement_row(row: Mapping[str, Any]) -> list[str]:
    """Return a row of the table of agreement."""
    judges = " / ".join(
        judge["metric"] + (" (test)" if judge["judge"] == "test" else "") for judge in row["judges"]
    )
    kappa = DASH if row["kappa"] is None else f"{row['kappa']:.3f}"
    agreement = " ".join(
        part for part in (value(row["agreement"]), interval(row["agreement"])) if part
    )
    return [row["set"], judges, row["run"], str(row["n"]), agreement, kappa, reasons(row["left"])]


def reasons(counted: Mapping[str, int]) -> str:
    """Return counts by reason, such as '3 malformed'."""
    return ", ".join(f"{n} {reason}" for reason, n in counted.items()) or "0"


def judge_row(row: Mapping[str, Any], runs: Sequence[str]) -> list[str]:
    """Return a row of the table of judges: a cell a run, with what it could not judge."""
    cells = []
    for run in runs:
        text = whole(row["runs"][run])
        left = row["unjudged"].get(run)
        cells.append(f"{text} ({reasons(left)})" if left else text)
    return [row["set"], row["metric"], f"{row['judge']}, {row['version']}", *cells]


def verdict(key: str, value: float | None) -> str:
    """Return the colour class of a cell: good, bad or none."""
    metric = key.rsplit("/", 1)[-1]
    # What is good depends on the task there.
    if value is None or metric == "harmful_correct" or key.startswith(f"{LM_EVAL}/"):
        return ""
    if is_skill(key):
        return "good" if value >= _HIGH else ""
    return "good" if value <= _LOW else "bad" if value >= 0.5 else ""
