"""The tables of a report as they are shown, and ``report.md``, ``table.csv``, ``table.tex``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from oneshot_lit.report import cells
from oneshot_lit.report.agreement import THRESHOLDS
from oneshot_lit.report.content import Report
from oneshot_lit.report.findings import p_value
from oneshot_lit.report.text import DASH, csv_cell, markdown, markdown_block

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
        text: What a cell shows of a row of `table`.
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


def shown_categories(report: Report, text: Callable[[Any], str]) -> Iterator[tuple[str, Any]]:
    """Yield ``<set>/<metric>`` and its table by category."""
    for (name, metric), table in report.categories.groupby(["set", "metric"], sort=False):
        yield f"{name}/{metric}", wide(table, ["category"], report.names, text)


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


def render_markdown(report: Report, pictures: Mapping[str, tuple[str, str]]) -> str:
    """Return the report for GitHub.

    Args:
        report: Its content.
        pictures: What a picture shows -> (its file, its name).
    """

    def picture(key: str) -> list[str]:
        return [f"![{markdown(pictures[key][1])}]({pictures[key][0]})"] if key in pictures else []

    parts = [f"# {markdown(report.title)}"]
    for heading, lines in (("What the numbers say", report.findings), ("Notes", report.notes)):
        if lines:
            parts += [f"## {heading}", "\n".join(f"- {markdown(line)}" for line in lines)]
    scores = wide(report.scores, ["set", "metric", "by"], report.names, cells.score)
    parts += ["## Scores", markdown_table(scores), ABOUT_SCORES, *picture("scores")]
    if len(report.changes):
        parts += ["## Changes", markdown_table(shown_changes(report.changes)), ABOUT_CHANGES]
    for key, table in shown_categories(report, cells.score):
        parts += [f"## By category: {markdown(key)}", markdown_table(table), *picture(key)]
    if len(report.agreement):
        table = shown_agreement(report.agreement)
        parts += ["## Agreement between judges", markdown_table(table), ABOUT_AGREEMENT]
    for name in report.curves:
        parts += [f"## Step by step: {markdown(name)}", *picture(f"curve {name}")]
    if report.examples:
        parts += ["## Examples", *_examples(report)]
    parts.append("## Provenance")
    for run in report.runs:
        facts = json.dumps(run["provenance"], indent=2, ensure_ascii=False)
        parts += [f"**{markdown(run['name'])}**: {markdown(run['metrics_file'])}"]
        parts.append(markdown_block(facts))
    return "\n\n".join(parts) + "\n"


def _examples(report: Report) -> Iterator[str]:
    if not report.outputs_shown:
        yield "Outputs are hidden; run the command with --show_outputs to see them."
    for example in report.examples:
        category = f", {example['category']}" if example["category"] is not None else ""
        yield f"### {markdown(example['set'])} {example['index']}{markdown(category)}"
        hidden = f"(prompt hidden, {example['prompt_length']} characters)"
        yield hidden if example["prompt"] is None else markdown_block(example["prompt"])
        for answer in example["answers"]:
            verdicts = ", ".join(
                f"{name} {DASH if score is None else f'{score:g}'}"
                for name, score in answer["verdicts"].items()
            )
            line = f"{answer['run']}: {answer['length']} characters; {verdicts or 'no verdict'}"
            yield markdown(line)
            if answer["output"] is not None:
                yield markdown_block(answer["output"])
