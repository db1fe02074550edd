"""``report.html``, ``report.md`` and their pictures."""

from __future__ import annotations

import json
import re
import warnings
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, select_autoescape

from oneshot_lit import plots
from oneshot_lit.io.files import file_written_whole
from oneshot_lit.report import cells, tables
from oneshot_lit.report.content import Report
from oneshot_lit.report.text import DASH, markdown, markdown_block, picture_label

# Key of a picture -> (its file relative to the report, its name).
Pictures = Mapping[str, tuple[str, str]]


def write_pictures(report: Report, out: Path) -> Pictures:
    """Draw the scores and categories, and copy the curves of realignments."""
    pictures: dict[str, tuple[str, str]] = {}
    with warnings.catch_warnings():
        # The font draws missing characters as boxes, which is fine.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        for key, (figure, name) in _figures(report).items():
            pictures[key] = _file(len(pictures), key), name
            plots.save_figure(figure, out / pictures[key][0])
    for run, path in report.curves.items():
        pictures[f"curve {run}"] = _file(len(pictures), f"curve {run}"), f"Realignment of {run}"
        with file_written_whole(out / pictures[f"curve {run}"][0]) as file:
            file.write(path.read_bytes())
    return pictures


def _file(number: int, key: str) -> str:
    return f"pictures/{number}_{re.sub(r'[^a-z0-9]+', '_', key.lower()).strip('_')[:60]}.png"


def _figures(report: Report) -> dict[str, tuple[Any, str]]:
    figures = {}
    colours = {picture_label(n): c for n, c in plots.run_colours(report.names).items()}
    scores = _drawn(report.scores)
    scores["row"] = [picture_label(f"{row.set}/{row.metric}") for row in scores.itertuples()]
    if len(scores):
        figure = plots.rates_with_intervals(scores, colours)
        figures["scores"] = figure, "Scores with 95% intervals"
    for (name, metric), table in _drawn(report.categories).groupby(["set", "metric"], sort=False):
        rows = table.assign(row=table["category"].map(picture_label))
        key = f"{name}/{metric}"
        figures[key] = plots.category_map(rows, picture_label(key)), f"{key} by category"
    return figures


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the scores from 0 to 1, which can share an axis."""
    known = table.dropna(subset="value")
    off = ~known["value"].between(0, 1) | known["metric"].str.startswith("harmfulness_score")
    of_score = off.groupby([known["set"], known["metric"]]).transform("any").astype(bool)
    return known[~of_score].assign(run=known["run"].map(picture_label))


def render_page(report: Report, pictures: Pictures, out: Path) -> str:
    """Return the report as HTML, in one file without any link."""
    embedded = {
        key: (f"data:image/png;base64,{b64encode((out / file).read_bytes()).decode()}", name)
        for key, (file, name) in pictures.items()
    }
    return _render("report.html.j2", report, embedded, "\n")


def render_markdown(report: Report, pictures: Pictures) -> str:
    """Return the report for GitHub."""
    return _render("report.md.j2", report, pictures, " ")


def _render(template: str, report: Report, pictures: Pictures, separator: str) -> str:
    environment = Environment(
        loader=PackageLoader("oneshot_lit.report", "."),
        autoescape=select_autoescape(["html.j2"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "facts": lambda value: json.dumps(value, indent=2, ensure_ascii=False),
        "grade": lambda score: DASH if score is None else f"{score:g}",
        "md": markdown,
        "md_block": markdown_block,
        "md_table": tables.markdown_table,
    }
    return environment.get_template(template).render(
        report=report,
        tables=tables,
        pictures=pictures,
        run_colours=plots.run_colours(report.names),
        score=lambda row: cells.score(row, separator),
        colour=cells.colour,
    )
