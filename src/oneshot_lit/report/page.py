"""``report.html`` and its pictures."""

from __future__ import annotations

import base64
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader

from oneshot_lit import plots
from oneshot_lit.report import cells, tables
from oneshot_lit.report.content import Report
from oneshot_lit.report.text import picture_label

PICTURES = "pictures"


def draw_pictures(report: Report, out: Path) -> dict[str, tuple[str, str]]:
    """Write the pictures and return what each shows -> (its file as seen from `out`, its name)."""
    labels = {name: picture_label(name) for name in report.names}
    colours = plots.run_colours(report.names)
    figures = {}
    scores = _labelled(report.scores, labels)
    scores["row"] = [picture_label(f"{row.set}/{row.metric}") for row in scores.itertuples()]
    if len(scores):
        palette = {labels[name]: colour for name, colour in colours.items()}
        figures["scores"] = plots.rates_with_intervals(scores, palette), "Scores with 95% intervals"
    for (name, metric), of in report.categories.groupby(["set", "metric"], sort=False):
        table = _labelled(of, labels)
        table["row"] = table["category"].map(picture_label)
        key = f"{name}/{metric}"
        if len(table):
            figures[key] = plots.category_map(table, picture_label(key)), f"{key} by category"
    for run, curve in report.curves.items():
        figures[f"curve {run}"] = plots.step_curve(curve), f"Realignment of {run}"
    pictures = {}
    with warnings.catch_warnings():
        # Letters that the font lacks are drawn as boxes.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        for number, (key, (figure, name)) in enumerate(figures.items()):
            slug = re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_")[:60]
            file = f"{PICTURES}/{number}_{slug}.png"
            plots.save_figure(figure, out / file)
            pictures[key] = file, name
    return pictures


def _labelled(table: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """Return the rows that can share an axis from 0 to 1, with the labels of their runs."""
    drawn = table.dropna(subset="value")
    off = drawn[~drawn["value"].between(0, 1) | drawn["metric"].str.startswith("harmfulness_score")]
    scores = pd.MultiIndex.from_frame(drawn[["set", "metric"]])
    return drawn[~scores.isin(pd.MultiIndex.from_frame(off[["set", "metric"]]))].assign(
        run=lambda rows: rows["run"].map(labels)
    )


def render_page(report: Report, pictures: Mapping[str, tuple[str, str]], out: Path) -> str:
    """Return the report as HTML, in one file without any link."""
    environment = Environment(
        loader=PackageLoader("oneshot_lit.report", "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    embedded = {
        key: (base64.b64encode((out / file).read_bytes()).decode(), name)
        for key, (file, name) in pictures.items()
    }
    keys = ["set", "metric", "by"]
    return environment.get_template("report.html.j2").render(
        report=report,
        tables=tables,
        pictures=embedded,
        run_colours=plots.run_colours(report.names),
        scores=tables.wide(report.scores, keys, report.names, _lines),
        score_colours=tables.wide(report.scores, keys, report.names, cells.colour),
        categories=[
            (key, table, colours)
            for (key, table), (_, colours) in zip(
                tables.shown_categories(report, _lines),
                tables.shown_categories(report, cells.colour),
                strict=True,
            )
        ],
        facts={
            run["name"]: json.dumps(run["provenance"], indent=2, ensure_ascii=False)
            for run in report.runs
        },
    )


def _lines(row: Any) -> str:
    return cells.score(row, "\n")
