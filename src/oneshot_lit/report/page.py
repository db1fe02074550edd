"""Writes a report: ``report.html``, ``report.md``, its pictures, and its tables as files."""

from __future__ import annotations

import json
import math
import re
import warnings
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape
from matplotlib import rc_context

from oneshot_lit import plots
from oneshot_lit.evaluation.metrics.registry import is_skill
from oneshot_lit.io.files import file_written_whole, write_json_atomically, write_text_atomically
from oneshot_lit.report import tables
from oneshot_lit.report.content import Report
from oneshot_lit.report.scores import ATTACK, worst
from oneshot_lit.report.text import DASH, markdown, markdown_block

# What a picture shows -> its file relative to the report.
Pictures = Mapping[str, str]


def write_report(report: Report, out: Path) -> None:
    """Write all files of a report, each whole or not at all; the page comes last.

    Where outputs are shown, only the owner may read them.
    """
    pictures = _write_pictures(report, out)
    embedded = {
        name: f"data:image/png;base64,{b64encode((out / file).read_bytes()).decode()}"
        for name, file in pictures.items()
    }
    write_json_atomically(out / "report.json", report.as_json(), report.outputs_shown)
    for name, text in {
        "table.csv": tables.render_csv(report),
        "table.tex": tables.render_tex(report),
        "report.md": _render("report.md.j2", report, pictures, " "),
        "report.html": _render("report.html.j2", report, embedded, "\n"),
    }.items():
        write_text_atomically(out / name, text, report.outputs_shown)


def _write_pictures(report: Report, out: Path) -> Pictures:
    """Draw the scores and the sections, and copy the curves of realignments."""
    pictures: dict[str, str] = {}
    # Names may hold "$", which is no formula.
    with warnings.catch_warnings(), rc_context({"text.parse_math": False}):
        # The font draws missing characters as boxes, which is fine.
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")
        for name, figure in _figures(report).items():
            pictures[name] = _file(len(pictures), name)
            plots.save_figure(figure, out / pictures[name])
    for run, path in report.curves.items():
        name = f"Realignment of {run}"
        pictures[name] = _file(len(pictures), name)
        with file_written_whole(out / pictures[name]) as file:
            file.write(path.read_bytes())
    return pictures


def _file(number: int, name: str) -> str:
    return f"pictures/{number}_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')[:60]}.png"


def _figures(report: Report) -> dict[str, Any]:
    """Draw the scores from 0 to 1, which can share an axis, and safety against utility."""
    known = report.scores.dropna(subset="value")
    off = ~known["value"].between(0, 1) | known["metric"].str.startswith("harmfulness_score")
    of_score = off.groupby([known["set"], known["metric"]]).transform("any").astype(bool)
    scores = known[~of_score].assign(row=known["set"] + "/" + known["metric"])
    colours = plots.run_colours(report.names)
    figures = {}
    if len(scores) and not report.many_runs:
        figures["Scores with 95% intervals"] = plots.rates_with_intervals(scores, colours)
    points = {}
    for name in report.names:
        attack, own = worst(scores, name, ATTACK), scores[scores["run"] == name]
        skills = own["value"][[is_skill(key) for key in own["row"]]]
        points[name] = (math.nan if attack is None else attack["value"], skills.mean())
    if any(math.isfinite(sum(point)) for point in points.values()):
        figures["Safety and utility"] = plots.safety_utility(points, colours)
    return figures | {each.title: each.figure for each in report.sections if each.figure}


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
        score=lambda row: tables.score(row, separator),
        colour=tables.colour,
    )
