"""A picture of the steps of a selection or a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.plots.style import CYCLE


def progress(
    rows: Sequence[Mapping[str, Any]],
    x: str,
    panels: Mapping[str, Sequence[str]],
    levels: Mapping[str, tuple[str, float]] | None = None,
    log: bool = False,
) -> Figure:
    """Draw columns of a table against one of them.

    Args:
        rows: The rows of the table; where ``kept`` is true, the point is drawn larger.
        x: The column of the horizontal axis.
        panels: Label of a panel's vertical axis -> the columns drawn there.
        levels: Label of a panel's vertical axis -> name and height of a dashed line.
        log: Whether both axes are logarithmic.
    """
    size = (1.8 + 4 * len(panels), 3.6)
    figure, grid = plt.subplots(1, len(panels), figsize=size, squeeze=False, layout="constrained")
    for axes, (label, names) in zip(grid[0], panels.items(), strict=True):
        for name, colour in zip(names, CYCLE, strict=False):
            points = [(row[x], row[name]) for row in rows]
            axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=name)
            for row in rows:
                if row.get("kept"):
                    axes.plot(row[x], row[name], "o", color=colour, markersize=11, label="kept")
        if levels and label in levels:
            name, height = levels[label]
            axes.axhline(height, color="black", alpha=0.5, linestyle="--", label=name)
        if log:
            axes.set(xscale="log", yscale="log")
        else:
            axes.xaxis.get_major_locator().set_params(integer=True)
            # From 0, so that a flat line looks flat.
            axes.set_ylim(min(0, axes.get_ylim()[0]), max(0, axes.get_ylim()[1]))
        axes.set(xlabel=x, ylabel=label)
        axes.legend(fontsize=8, frameon=False)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
