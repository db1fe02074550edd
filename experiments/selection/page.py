"""The page of a comparison: one HTML file without any link."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from jinja2 import Environment, FileSystemLoader, select_autoescape
from matplotlib.figure import Figure

from experiments.selection.findings import amount, findings, interval
from experiments.selection.pictures import outcomes_by_category, selector_comparison


def embed(figure: Figure) -> str:
    """Return a figure as a PNG in a data URI, and close it."""
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=130)
    plt.close(figure)
    return "data:image/png;base64," + b64encode(picture.getvalue()).decode()


def render_page(compared: Mapping[str, Any], provenance: Mapping[str, Any]) -> str:
    """Return the page as HTML.

    Args:
        compared: ``selections``, the comparison of one seed, and ``all_seeds`` if there are more.
        provenance: The provenance in the study's ``results.json``.
    """
    own = compared["selections"]
    parts = [(own, "Which selector wins")]
    if (pooled := compared.get("all_seeds")) is not None:
        *others, last = sorted(pooled["seeds"])
        numbers = ", ".join(map(str, others))
        parts = [
            (pooled, f"Which selector wins over seeds {numbers} and {last}"),
            (own, f"Which selector wins at seed {provenance['seed']} alone"),
        ]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=select_autoescape(default=True)
    )
    return environment.get_template("page.html.j2").render(
        provenance=provenance,
        selections=own,
        # Each: results, heading, findings, picture.
        compared=[
            (results, heading, findings(results), embed(selector_comparison(results)))
            for results, heading in parts
        ],
        outcomes=embed(outcomes_by_category(list(own["cases"].values()))),
        interval=interval,
        amount=amount,
    )
