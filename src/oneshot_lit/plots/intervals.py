"""Pictures of rates with their intervals, over runs and over categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from oneshot_lit.plots.style import COLOURS, CYCLE

Cell = Mapping[str, Any] | None
_MARKERS = "osD^vPX"
# More rows than these make a picture that nobody reads.
_MOST_ROWS = 60


def run_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each run: that of its name where it has one, else the next free one."""
    fixed = {name: COLOURS[name] for name in names if name in COLOURS}
    free = [colour for colour in CYCLE if colour not in fixed.values()] or list(CYCLE)
    others = [name for name in names if name not in fixed]
    return fixed | {name: free[i % len(free)] for i, name in enumerate(others)}


def rates_with_intervals(
    rows: Sequence[tuple[str, Mapping[str, Cell]]],
    labels: Mapping[str, str],
    colours: Sequence[str],
) -> Figure:
    """Draw a line of points for each score, one a run, with its 95% interval.

    Args:
        rows: (name of the score, run -> its value, low and high, from 0 to 1).
        labels: Run -> how it is named.
        colours: Colour of each run.
    """
    hidden = len(rows) - _MOST_ROWS
    rows = rows[:_MOST_ROWS]
    runs = list(labels)
    height = 1.3 + len(rows) * (0.22 + 0.13 * len(runs))
    figure, axes = plt.subplots(figsize=(7.5, height), layout="constrained")
    step = 0.7 / max(1, len(runs))
    for number, run in enumerate(runs):
        places, values, low, high = [], [], [], []
        for row, (_, cells) in enumerate(rows):
            cell = cells.get(run)
            if cell is None or cell["value"] is None:
                continue
            places.append(row + (number - (len(runs) - 1) / 2) * step)
            values.append(cell["value"])
            # A score without an interval is a point alone.
            low.append(cell["value"] if cell["low"] is None else cell["low"])
            high.append(cell["value"] if cell["high"] is None else cell["high"])
        found = np.array(values)
        axes.errorbar(
            found,
            places,
            # Rounding may put an end on the wrong side by the last bit.
            xerr=np.maximum(0, [found - np.array(low), np.array(high) - found]),
            fmt=_MARKERS[number % len(_MARKERS)],
            color=colours[number],
            markersize=5,
            capsize=3,
            linewidth=1.4,
            label=labels[run],
        )
    for row in range(1, len(rows)):
        axes.axhline(row - 0.5, color="black", alpha=0.1, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    cut = "" if hidden <= 0 else f"; {hidden} more scores in the table"
    axes.set(xlim=(-0.02, 1.02), ylim=(len(rows) - 0.5, -0.5))
    axes.set_xlabel(f"share or mean, 95% interval{cut}")
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    columns = min(4, len(runs))
    figure.legend(loc="outside upper center", ncols=columns, fontsize=9, frameon=False)
    return figure


def category_map(
    rows: Sequence[tuple[str, Mapping[str, Cell]]], labels: Mapping[str, str], title: str
) -> Figure:
    """Draw rates as shades, categories against runs, with the value and count in each cell.

    Args:
        rows: (category, run -> its value and n).
        labels: Run -> how it is named.
        title: What is drawn.
    """
    hidden = len(rows) - _MOST_ROWS
    rows = rows[:_MOST_ROWS]
    table = np.full((len(rows), len(labels)), np.nan)
    for place, (_, cells) in enumerate(rows):
        for column, run in enumerate(labels):
            cell = cells.get(run)
            if cell is not None and cell["value"] is not None:
                table[place, column] = cell["value"]
    size = (2.6 + 1.15 * len(labels), 1.3 + 0.36 * len(rows))
    figure, axes = plt.subplots(figsize=size, layout="constrained")
    image = axes.imshow(table, aspect="auto", cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(image, label="share or mean")
    for (place, column), value in np.ndenumerate(table):
        cell = rows[place][1].get(list(labels)[column])
        if cell is not None and not np.isnan(value):
            axes.text(
                column,
                place,
                f"{value:.2f}  n {cell['n']}",
                ha="center",
                va="center",
                fontsize=8,
                color="white" if value < 0.5 else "black",
            )
    axes.set_xticks(range(len(labels)), list(labels.values()), rotation=20, ha="right")
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9)
    cut = "" if hidden <= 0 else f" ({hidden} more categories in the table)"
    axes.set_title(title + cut, fontsize=10)
    axes.tick_params(length=0)
    return figure
