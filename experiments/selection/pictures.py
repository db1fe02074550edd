"""Pictures of selectors against the ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.plots.selection import draw_outcomes
from oneshot_lit.plots.style import CYCLE


def selector_comparison(results: Mapping[str, Any]) -> Figure:
    """Draw each selector's rank correlation and regret: a dot a case, the mean with its interval.

    Args:
        results: What `compare_selectors` returns; cases of one group have one colour.
    """
    names = sorted(
        (n for n in results["selectors"] if n != results["truth"]),
        key=lambda n: (results["selectors"][n]["regret"]["value"], n != results["first"]),
        reverse=True,
    )
    figure, panels = plt.subplots(
        1, 2, figsize=(10, 0.42 * len(names) + 1.9), layout="constrained", sharey=True
    )
    cases = list(results["cases"].values())
    groups = [case.get("group", case["title"]) for case in cases]
    colours = {g: CYCLE[i % len(CYCLE)] for i, g in enumerate(dict.fromkeys(groups))}
    for axes, key, label, level in (
        (panels[0], "spearman", "Spearman correlation with brute force", 0.0),
        (
            panels[1],
            "regret",
            "regret of the pick (development)",
            results["chance_regret"]["value"],
        ),
    ):
        for place, name in enumerate(names):
            for number, case in enumerate(cases):
                value = case["selectors"][name][key]
                value = value if key == "regret" else value["value"]
                # The shift keeps dots of different cases apart.
                shift = 0.22 * (number / max(1, len(cases) - 1) - 0.5)
                if value is not None:
                    colour = colours[groups[number]]
                    axes.plot(value, place + shift, "o", color=colour, ms=4, alpha=0.75, zorder=2)
            _mean_with_interval(axes, results["selectors"][name][key], place)
        axes.axvline(level, color="#666", lw=1, ls="--", zorder=1)
        axes.annotate(
            "chance", (level, 1.0), xycoords=("data", "axes fraction"), xytext=(3, 3),
            textcoords="offset points", fontsize=8, color="#666",
        )  # fmt: skip
        axes.set(xlabel=label)
        if key == "regret":
            # Most values are near 0 and a few near 1; this scale shows both.
            axes.set_xscale("symlog", linthresh=0.01)
            axes.set_xticks([0, 0.01, 0.1, 1], ["0", "0.01", "0.1", "1"])
            axes.set_xlim(left=-0.001)
        axes.grid(axis="x", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(range(len(names)), [n.replace("_", " ") for n in names])
    handles = [
        plt.Line2D([], [], marker="o", ls="", ms=4, color=colour, label=group)
        for group, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def _mean_with_interval(axes: Any, estimate: Mapping[str, Any], place: int) -> None:
    if estimate["low"] is not None:
        axes.plot([estimate["low"], estimate["high"]], [place] * 2, color="black", lw=1.6, zorder=3)
    axes.plot(estimate["value"], place, "D", color="black", ms=6, zorder=4)


def outcomes_by_category(cases: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw every candidate's outcome as a dot, by category, one panel a case.

    Args:
        cases: Each a ``title`` and ``categories``: category -> outcomes.
    """
    columns = 2 if len(cases) > 1 else 1
    rows = math.ceil(len(cases) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(6.2 * columns, 3.1 * rows), layout="constrained", squeeze=False
    )
    for axes, case in zip(grid.flat, cases, strict=False):
        draw_outcomes(axes, case["categories"])
        axes.set_title(case["title"], fontsize=10)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    figure.supylabel("outcome of the patch: attack success + over-refusal + lost skill", fontsize=9)
    return figure
