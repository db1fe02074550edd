"""Controls: each method's scores beside those of the stage that leaves its idea out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from oneshot_lit.evaluation.metrics.registry import is_skill
from oneshot_lit.report.content import Section
from oneshot_lit.report.findings import p_value
from oneshot_lit.report.scores import ATTACK, REFUSAL, change_table
from oneshot_lit.report.tables import interval, number
from oneshot_lit.report.text import DASH

_CHANCE = 0.05
_COLUMNS = [
    *("method", "control", "set", "metric", "value", "low", "high"),
    *("of_control", "control_low", "control_high", "p"),
]


def compare_controls(
    pairs: Mapping[str, str], scores: pd.DataFrame, answers: pd.DataFrame
) -> pd.DataFrame:
    """Return a row for each safety score and skill of each method and its control.

    Columns: ``method``, ``control``, ``set``, ``metric``; ``value``, ``low`` and ``high`` of the
    method, ``of_control``, ``control_low`` and ``control_high``; and ``p``, McNemar's exact test
    on the same prompts, missing where the answers cannot be paired.

    Args:
        pairs: Control -> its method.
        scores: The scores of a report that has both stages.
        answers: The scores of all answers of its runs.
    """
    changes = change_table(list(pairs.items()), scores, answers)
    refused = set(changes["set"][changes["metric"] == REFUSAL])
    rows = zip(changes["set"], changes["metric"], strict=True)
    # Of sets whose prompts may be refused, the right answers say little more.
    shown = [m in (ATTACK, REFUSAL) or (s not in refused and is_skill(f"{s}/{m}")) for s, m in rows]
    # Typed, as an empty list would choose columns.
    table = changes[pd.Series(shown, changes.index, dtype=bool)].rename(
        columns={"from": "control", "to": "method", "before": "of_control", "after": "value"}
    )
    for run, columns in (("method", ["low", "high"]), ("control", ["control_low", "control_high"])):
        ends = scores[["run", "set", "metric", "low", "high"]]
        ends = ends.set_axis([run, "set", "metric", *columns], axis=1)
        table = table.merge(ends, on=[run, "set", "metric"])
    return table[_COLUMNS]


def sentences(table: pd.DataFrame) -> list[str]:
    """Say for each method whether its attack success differs from the control's, and its skills.

    The worst set counts: that with the highest attack success of the two. Of the skills, the one
    that differs most.
    """
    said = []
    attacks = table[table["metric"] == ATTACK]
    for (method, control), of in attacks.groupby(["method", "control"], sort=False):
        row = of.loc[of[["value", "of_control"]].max(axis=1).idxmax()]
        both = f"attack success {row['value']:.1%}, with its control {control} "
        both += f"{row['of_control']:.1%}, on '{row['set']}'"
        if pd.isna(row["p"]):
            verdict = "the answers cannot be paired, so it is not tested"
        elif row["p"] >= _CHANCE:
            verdict = f"no difference is shown ({p_value(row['p'])})"
        else:
            word = "safer" if row["value"] < row["of_control"] else "less safe"
            verdict = f"the method is {word} than its control ({p_value(row['p'])})"
        said.append(f"{method}: {both}: {verdict}.{_skill(table, method, control)}")
    return said


def _skill(table: pd.DataFrame, method: str, control: str) -> str:
    """Say which skill differs most, if a difference is shown."""
    own = table[(table["method"] == method) & (table["control"] == control)]
    own = own[~own["metric"].isin((ATTACK, REFUSAL)) & (own["p"] < _CHANCE)]
    if own.empty:
        return ""
    row = own.loc[(own["value"] - own["of_control"]).abs().idxmax()]
    more = "more" if row["value"] > row["of_control"] else "less"
    what = f"{row['set']}/{row['metric']}"
    return f" It keeps {more} of '{what}': {row['value']:.1%}, beside {row['of_control']:.1%}."


def controls_section(table: pd.DataFrame) -> Section:
    """Return the methods and their controls as a part of the report."""
    texts = pd.DataFrame(
        {
            "method": table["method"],
            "control": table["control"],
            "score": table["set"] + "/" + table["metric"],
            "method's": _shown(table, ("value", "low", "high")),
            "control's": _shown(table, ("of_control", "control_low", "control_high")),
            "p": [
                DASH if pd.isna(p) else p_value(p).removeprefix("p ").lstrip("= ")
                for p in table["p"]
            ],
        }
    )
    return Section(
        "Methods beside their controls",
        "A control does as much without the method's idea. What both reach is no merit of the "
        "idea. Shares with 95% intervals; p is McNemar's exact test on the same prompts, without "
        "a correction for the number of rows.",
        sentences(table),
        texts.set_index("method"),
    )


def _shown(table: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    rows: list[dict[Any, Any]] = table[list(columns)].to_dict("records")
    values = [[row[column] for column in columns] for row in rows]
    return [f"{number(value)} {interval(low, high)}".strip() for value, low, high in values]
