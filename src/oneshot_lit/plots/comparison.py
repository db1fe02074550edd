"""Pictures that compare runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.plots.style import CYCLE


def safety_utility(points: Mapping[str, tuple[float, float]], colours: Mapping[str, str]) -> Figure:
    """Draw each run as a point.

    Args:
        points: Run -> the attack success rate of its worst set, and the mean of its task scores.
        colours: Run -> its colour.
    """
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    groups: dict[tuple[float, float], list[str]] = {}
    for name, (x, y) in points.items():
        group = groups.setdefault((round(x, 1), round(y, 1)), [])
        # Runs at the same place show as rings, and share a label.
        size = 260 * 0.45 ** len(group)
        group.append(name)
        axes.scatter(x, y, s=size, color=colours[name], edgecolor="white", zorder=2 + len(group))
    for (x, y), names in groups.items():
        side = -1 if x > 0.5 else 1
        axes.annotate(
            "\n".join(names),
            (x, y),
            xytext=(14 * side, -8),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="top",
        )
    axes.axvspan(-0.05, 0.05, color="#009E73", alpha=0.08, zorder=0)
    axes.set(
        xlabel="attack success rate of the worst set of harmful prompts",
        ylabel="mean task score",
        xlim=(-0.05, 1.05),
        ylim=(-0.05, 1.1),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def sweep_panels(scores: Mapping[str, Mapping[str, Any]], x: str) -> Figure:
    """Draw each measure of a sweep in a panel of its own.

    Args:
        scores: Measure -> ``lines``: label -> [(number, value)], and ``levels``: stage -> value.
        x: What the number is.
    """
    figure, grid = plt.subplots(
        1, len(scores), figsize=(4.2 * len(scores), 3.6), squeeze=False, layout="constrained"
    )
    every = [n for part in scores.values() for line in part["lines"].values() for n, _ in line]
    # Evenly spaced: sweeps are mostly geometric, and some begin with 0.
    place = {number: i for i, number in enumerate(sorted(set(every)))}
    styles = ("o-", "s--", "^:", "d-.")
    for axes, (measure, part) in zip(grid[0], scores.items(), strict=True):
        for i, (label, line) in enumerate(part["lines"].items()):
            axes.plot(
                [place[n] for n, _ in line],
                [value for _, value in line],
                styles[i % len(styles)],
                color=CYCLE[i % len(CYCLE)],
                # Curves that coincide stay visible.
                markersize=8 - 2 * (i % 3),
                label=label,
            )
        for i, (stage, value) in enumerate(part["levels"].items()):
            shade = ("black", "#999999")[i % 2]
            axes.axhline(value, color=shade, linewidth=1.2, linestyle=(0, (4, 2)), label=stage)
        axes.set(xlabel=x, title=measure, xticks=range(len(place)), ylim=_limits(part))
        axes.set_xticklabels(
            [f"{n:g}" for n in place], rotation=45 if len(place) > 8 else 0, fontsize=8
        )
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), fontsize=8, frameon=False
    )
    return figure


def _limits(part: Mapping[str, Any]) -> tuple[float, float]:
    """Return limits that show a flat line as flat: at least 0 to 0.1."""
    values = [v for line in part["lines"].values() for _, v in line] + [*part["levels"].values()]
    top = max([0.1, *values])
    return min([-0.03 * top, *values]), 1.05 * top
