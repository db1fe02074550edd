"""Pictures of selectors against the ground truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneshot_lit.plots.style import COLOURS, CYCLE

GENERAL = "general"


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


def draw_outcomes(axes: Axes, scores: Mapping[str, Sequence[float]]) -> None:
    """Draw outcomes as dots, one column a category, best median first; general ones stand out."""
    order = sorted(scores, key=lambda name: (median(scores[name]), name))
    label: str | None = "median of the category"
    for place, name in enumerate(order):
        colour = COLOURS["patched"] if name == GENERAL else COLOURS["aligned"]
        values = scores[name]
        # Side by side in the pool's order: many scores are equal.
        half = (len(values) - 1) / 2
        axes.scatter(
            [place + 0.7 * (n - half) / len(values) for n in range(len(values))],
            values,
            s=18,
            color=colour,
            alpha=0.8,
            linewidths=0,
            zorder=3,
        )
        axes.plot(
            [place - 0.42, place + 0.42],
            [median(values)] * 2,
            color="black",
            linewidth=1,
            label=label,
        )
        label = None
        if name == GENERAL:
            axes.axvspan(place - 0.5, place + 0.5, color=colour, alpha=0.1, zorder=0, linewidth=0)
    labels = [f"{name} ({len(scores[name])})" for name in order]
    axes.set_xticks(range(len(order)), labels, rotation=40, ha="right", fontsize=9)
    axes.set_xlim(-0.6, len(order) - 0.4)
    axes.set_ylim(bottom=min(0.0, *axes.get_ylim()))
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
