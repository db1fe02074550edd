"""The page of the depth study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, select_autoescape

from experiments.real_depth.findings import findings, interval
from experiments.real_depth.measures import PREDICTORS
from experiments.real_depth.pictures import frontier_by_depth, predictors_picture
from experiments.selection.page import embed


def render_page(results: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        results: What `compare` returns.
        provenance: The provenance in a study's ``results.json``.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True)
    )
    return environment.get_template("page.html.j2").render(
        results=results,
        provenance=provenance,
        lines=findings(results),
        interval=interval,
        predictors=PREDICTORS,
        frontier=embed(frontier_by_depth(results)),
        prediction=embed(predictors_picture(results)),
    )
