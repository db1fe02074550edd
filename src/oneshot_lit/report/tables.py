"""``report.md``, ``table.csv`` and ``table.tex``."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oneshot_lit.report import cells
from oneshot_lit.report.tex import tex
from oneshot_lit.report.text import csv_cell, markdown, markdown_block

CSV_COLUMNS = ("set", "metric", "run", "value", "low", "high", "n", "unscored")


def render_csv(content: Mapping[str, Any]) -> str:
    """Return every score in long form, a row for each metric and run that has it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in content["scores"]:
        for run, cell in row["runs"].items():
            if cell is not None:
                names = [csv_cell(name) for name in (row["set"], row["metric"], run)]
                writer.writerow([*names, *(cell[key] for key in CSV_COLUMNS[3:])])
    return text.getvalue()


def render_tex(content: Mapping[str, Any]) -> str:
    r"""Return a tabular to ``\input`` in a document; booktabs makes its rules finer."""
    runs = [run["name"] for run in content["runs"]]
    lines = [
        "% 95% intervals in brackets; number of scored answers in parentheses.",
        *(rf"\providecommand{{\{rule}rule}}{{\hline}}" for rule in ("top", "mid", "bottom")),
        rf"\begin{{tabular}}{{ll{'r' * len(runs)}}}",
        r"\toprule",
        " & ".join(["set", "metric", *map(tex, runs)]) + r" \\",
        r"\midrule",
    ]
    for row in content["scores"]:
        found = [_tex_cell(row["runs"][run]) for run in runs]
        lines.append(" & ".join([tex(row["set"]), tex(row["metric"]), *found]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tex_cell(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "--"
    n = f"({cell['n']}, {cell['unscored']} unscored)" if cell["unscored"] else f"({cell['n']})"
    return " ".join(tex(part) for part in (cells.value(cell), cells.interval(cell), n) if part)


def render_markdown(content: Mapping[str, Any], pictures: Mapping[str, tuple[str, str]]) -> str:
    """Return the report for GitHub.

    Args:
        content: What `report_content` returns.
        pictures: Key of a picture -> (its file, what it shows).
    """
    runs = [run["name"] for run in content["runs"]]

    def picture(key: str) -> list[str]:
        return [f"![{markdown(pictures[key][1])}]({pictures[key][0]})"] if key in pictures else []

    parts = [f"# {markdown(content['title'])}", "## What the numbers say"]
    parts.append("\n".join(f"- {markdown(line)}" for line in content["findings"]))
    if content["notes"]:
        parts += ["## Notes", "\n".join(f"- {markdown(line)}" for line in content["notes"])]
    scores = ([r["key"], *(cells.whole(r["runs"][run]) for run in runs)] for r in content["scores"])
    parts += ["## Scores", _table(["score", *runs], scores), cells.EXPLAINED, *picture("rates")]
    if content["changes"]:
        rows = [cells.change_row(change) for change in content["changes"]]
        parts += ["## Changes", _table(cells.CHANGE_HEADINGS, rows), cells.ABOUT_CHANGES]
    for number, table in enumerate(content["categories"]):
        rows = [[r["category"], *(cells.whole(r["runs"][n]) for n in runs)] for r in table["rows"]]
        parts += [f"## By category: {markdown(table['key'])}", _table(["category", *runs], rows)]
        parts += picture(f"category {number}")
    if content["judges"]:
        rows = [cells.judge_row(row, runs) for row in content["judges"]]
        parts += ["## Judges", _table(["set", "metric", "judge", *runs], rows)]
    if content["agreement"]:
        rows = [cells.agreement_row(row) for row in content["agreement"]]
        parts += ["## Agreement between judges", _table(cells.AGREEMENT_HEADINGS, rows)]
        parts.append(cells.about_agreement(content["thresholds"]))
    for run in content["curves"]:
        parts += [f"## Step by step: {markdown(run)}", *picture(f"curve {run}")]
    if content["examples"]:
        parts += ["## Examples", *_examples(content)]
    parts.append("## Provenance")
    for run in content["runs"]:
        facts = json.dumps(run["provenance"], indent=2, ensure_ascii=False)
        parts += [f"**{markdown(run['name'])}**: {markdown(run['metrics_file'])}"]
        parts.append(markdown_block(facts))
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(headings: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    first = [markdown(heading) for heading in headings]
    lines = [first, ["---"] * len(first), *([markdown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _examples(content: Mapping[str, Any]) -> list[str]:
    parts = []
    if not content["outputs_shown"]:
        parts.append("Outputs are hidden; run the command with --show_outputs to see them.")
    for example in content["examples"]:
        category = f", {example['category']}" if example["category"] is not None else ""
        parts.append(f"### {markdown(example['set'])} {example['index']}{markdown(category)}")
        hidden = f"(prompt hidden, {example['prompt_length']} characters)"
        parts.append(hidden if example["prompt"] is None else markdown_block(example["prompt"]))
        for answer in example["answers"]:
            verdicts = ", ".join(
                f"{name} {'–' if score is None else f'{score:g}'}"  # noqa: RUF001
                for name, score in answer["verdicts"].items()
            )
            line = f"{answer['run']}: {answer['length']} characters; {verdicts or 'no verdict'}"
            parts.append(markdown(line))
            if answer["output"] is not None:
                parts.append(markdown_block(answer["output"]))
    return parts
