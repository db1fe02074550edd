"""The tables of a report as they are shown, and ``table.csv`` and ``table.tex``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd

from oneshot_lit.report import cells
from oneshot_lit.report.agreement import THRESHOLDS
from oneshot_lit.report.content import Report
from oneshot_lit.report.findings import p_value
from oneshot_lit.report.text import DASH, csv_cell, markdown

HEADINGS = ("set", "metric", "by", "category")
CSV_COLUMNS = ["set", "metric", "run", "value", "low", "high", "n", "unscored"]
ABOUT_SCORES = (
    "Values are shares of answers or means of scores over answers; in brackets the 95% interval: "
    "Wilson's for shares, Student's t for means, 1.96 standard errors for lm-eval. n is the number "
    "of answers that were scored. What could not be scored or judged is in no value and is counted "
    "after n. A mean of equal scores has no interval."
)
ABOUT_CHANGES = (
    "The same prompts in pairs. Gained: answers that count in the second run only; lost: in the "
    "first only. p is of McNemar's exact test, two-sided, not corrected for the number of rows."
)
ABOUT_AGREEMENT = (
    "Only verdicts on the same answer to the same prompt are compared; 'left out' counts the "
    "others. 'test' is the keyword verdict of the test itself. Graded judges are made yes or no: "
    f"harmful is {' and '.join(f'{k} of {v:g} or more' for k, v in THRESHOLDS.items())}. Kappa is "
    "Cohen's, with a dash where both judges give one and the same verdict throughout. 'all runs' "
    "pools the answers of all runs: its kappa is higher the more the runs differ, and its interval "
    "takes them for independent."
)


def wide(
    table: pd.DataFrame, keys: Sequence[str], runs: Sequence[str], text: Callable[[Any], str]
) -> pd.DataFrame:
    """Return a table with a column for each run, in the order of its rows.

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
    return pd.DataFrame([[*k, *v.values()] for k, v in rows.items()], columns=[*keys, *runs])


def shown_changes(changes: pd.DataFrame) -> pd.DataFrame:
    """Return the changes as texts."""
    counts = changes[["pairs", "gained", "lost"]].astype(object).where(changes["p"].notna(), DASH)
    p = [DASH if pd.isna(p) else p_value(p).removeprefix("p ").lstrip("= ") for p in changes["p"]]
    return pd.DataFrame(
        {
            "score": changes["set"] + "/" + changes["metric"],
            "runs": changes["from"] + " → " + changes["to"],
            "before": changes["before"].map(cells.number),
            "after": changes["after"].map(cells.number),
            **{column: counts[column].map(str) for column in counts},
            "p": p,
            "overlap": changes["apart"].map({True: "no", False: "yes"}).fillna(DASH),
        }
    )


def shown_agreement(agreement: pd.DataFrame) -> pd.DataFrame:
    """Return the agreement as texts."""
    ends = [cells.interval(low, high) for low, high in agreement[["low", "high"]].values]
    shares = agreement["agreement"].map(cells.number)
    return pd.DataFrame(
        {
            **{column: agreement[column].map(str) for column in ("set", "judges", "run", "n")},
            "agreement": [f"{a} {b}".strip() for a, b in zip(shares, ends, strict=True)],
            "kappa": agreement["kappa"].map(cells.number),
            "left out": agreement["left_out"].replace("", "0"),
        }
    )


def shown_scores(report: Report, text: Callable[[Any], str]) -> pd.DataFrame:
    """Return the scores with a column for each run; each cell holds `text` of a score."""
    return wide(report.scores, ["set", "metric", "by"], report.names, text)


def shown_categories(report: Report, text: Callable[[Any], str]) -> dict[str, pd.DataFrame]:
    """Return ``<set>/<metric>`` -> its table by category, with a column for each run."""
    scores = report.categories.groupby(["set", "metric"], sort=False)
    return {"/".join(key): wide(of, ["category"], report.names, text) for key, of in scores}


def render_csv(report: Report) -> str:
    """Return every score in long form, a row for each metric and run that has it."""
    table = report.scores[CSV_COLUMNS].copy()
    for column in ("set", "metric", "run"):
        table[column] = table[column].map(csv_cell)
    return str(table.to_csv(index=False))


def render_tex(report: Report) -> str:
    r"""Return a tabular to ``\input``; it needs the package booktabs."""
    table = wide(report.scores, ["set", "metric"], report.names, cells.score)
    alignment = "ll" + "r" * len(report.names)
    return str(table.to_latex(index=False, escape=True, column_format=alignment))


def markdown_table(table: pd.DataFrame) -> str:
    """Return a table for GitHub."""
    escaped = table.map(markdown).rename(columns=markdown)
    return str(escaped.to_markdown(index=False, disable_numparse=True))
