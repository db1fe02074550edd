"""The tables of a report as they are shown, and ``table.csv`` and ``table.tex``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from oneshot_lit.evaluation.metrics.registry import ABILITY, LM_EVAL, is_skill
from oneshot_lit.report.content import Report
from oneshot_lit.report.findings import p_value
from oneshot_lit.report.text import DASH, markdown

CSV_COLUMNS = ["set", "metric", "run", "value", "low", "high", "n", "unscored"]
# Shares above or below which a cell is coloured: a reading aid, not a test.
_LOW, _HIGH = 0.02, 0.95
# A score is not coloured as good if its interval reaches further than this.
_WIDE = 0.1


def number(value: float | None) -> str:
    """Return a number with three digits, or a dash."""
    return DASH if value is None or pd.isna(value) else f"{value:.3f}"


def interval(low: float | None, high: float | None) -> str:
    """Return an interval in brackets, or nothing."""
    return "" if pd.isna(low) else f"[{low:.3f}, {high:.3f}]"


def score(row: Any, separator: str = " ") -> str:
    """Return the value, interval and counts of a row of the scores."""
    left = f", {row.reasons}" if row.reasons else ""
    parts = number(row.value), interval(row.low, row.high), f"n {row.n}{left}"
    return separator.join(part for part in parts if part)


def colour(row: Any) -> str:
    """Return the colour of a row of the scores: good, bad or none; good on few answers has none."""
    key = f"{row.set}/{row.metric}"
    # For these, what is good depends on the task, or on the scale.
    neutral = row.metric == "harmful_correct" or row.metric.startswith("harmfulness_score")
    if pd.isna(row.value) or neutral or key.startswith((f"{LM_EVAL}/", f"{ABILITY}/")):
        return ""
    wide = pd.notna(row.low) and max(row.value - row.low, row.high - row.value) > _WIDE
    if row.value >= _HIGH if is_skill(key) else row.value <= _LOW:
        return "" if wide else "good"
    return "bad" if row.value >= 0.5 and not is_skill(key) else ""


def wide(
    table: pd.DataFrame, keys: Sequence[str], runs: Sequence[str], text: Callable[[Any], str]
) -> pd.DataFrame:
    """Return a table with a column for each run; its index has the columns that name a row.

    Args:
        table: Scores or categories.
        keys: The columns that name a row.
        runs: The names of the runs.
        text: Returns the text of a cell from a row of `table`.
    """
    rows: dict[Any, dict[str, str]] = {}
    for row in table.itertuples():
        key = tuple(getattr(row, name) for name in keys)
        rows.setdefault(key, dict.fromkeys(runs, DASH))[row.run] = text(row)
    index = pd.MultiIndex.from_tuples(list(rows), names=keys)
    return pd.DataFrame([list(row.values()) for row in rows.values()], index, list(runs))


def shown_scores(
    report: Report, text: Callable[[Any], str], keys: Sequence[str] = ("set", "metric", "by")
) -> pd.DataFrame:
    """Return the scores with a column for each run, or a row for each of many runs.

    Args:
        report: The report.
        text: Returns the text of a cell from a row of the scores.
        keys: The columns that name a row, if the runs are columns.
    """
    if not report.many_runs:
        return wide(report.scores, keys, report.names, text)
    table = wide(report.scores, ["set", "metric"], report.names, text)
    return table.set_axis(["/".join(key) for key in table.index]).T.rename_axis("run")


def shown_categories(report: Report, text: Callable[[Any], str]) -> dict[str, pd.DataFrame]:
    """Return ``<set>/<metric>`` -> its table by category, with a column for each run."""
    scores = report.categories.groupby(["set", "metric"], sort=False)
    return {"/".join(key): wide(of, ["category"], report.names, text) for key, of in scores}


def shown_changes(changes: pd.DataFrame) -> pd.DataFrame:
    """Return the changes as texts."""
    counts = changes[["pairs", "gained", "lost"]].astype(object).where(changes["p"].notna(), DASH)
    p = [DASH if pd.isna(p) else p_value(p).removeprefix("p ").lstrip("= ") for p in changes["p"]]
    texts = pd.DataFrame(
        {
            "score": changes["set"] + "/" + changes["metric"],
            "runs": changes["from"] + " → " + changes["to"],
            "before": changes["before"].map(number),
            "after": changes["after"].map(number),
            **{column: counts[column].map(str) for column in counts},
            "p": p,
        }
    )
    return texts.set_index("score")


def shown_agreement(agreement: pd.DataFrame) -> pd.DataFrame:
    """Return the agreement as texts."""
    shares = [
        f"{number(row.agreement)} {interval(row.low, row.high)}".strip()
        for row in agreement.itertuples()
    ]
    texts = agreement[["set", "judges", "run", "n"]].astype(str)
    texts = texts.assign(agreement=shares, kappa=agreement["kappa"].map(number))
    texts["left out"] = agreement["left_out"].astype(str)
    return texts.set_index("set")


def render_csv(report: Report) -> str:
    """Return every score in long form, a row for each metric and run that has it."""
    return str(report.scores[CSV_COLUMNS].to_csv(index=False))


def render_tex(report: Report) -> str:
    r"""Return a tabular to ``\input``; it needs the package booktabs."""
    table = wide(report.scores, ["set", "metric"], report.names, score).reset_index(
        allow_duplicates=True
    )
    alignment = "ll" + "r" * len(report.names)
    return str(table.to_latex(index=False, escape=True, column_format=alignment))


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table for GitHub."""
    texts = table.reset_index(allow_duplicates=True).rename(columns=markdown)
    escaped = texts.map(lambda text: markdown(text.replace("\n", " ")))
    return str(escaped.to_markdown(index=False, disable_numparse=True))
