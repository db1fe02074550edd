"""A picture of a bilevel selection's steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.plots.style import COLOURS, CYCLE

_OBJECTIVES = {
    "f": "f, upper objective",
    "g": "g, weighted loss of theta",
    "v": "v, weighted loss of omega",
}


def selection_course(rows: Sequence[Mapping[str, Any]], candidates: int) -> Figure:
    """Draw the steps of a bilevel selection: objectives, gap, and how sure it is of its choice.

    Args:
        rows: The rows of ``selection.csv``.
        candidates: How many there are in the pool.
    """
    figure, grid = plt.subplots(1, 3, figsize=(12.5, 3.6), layout="constrained")
    steps = [row["step"] for row in rows]
    mark = {"marker": "o", "markersize": 3, "linewidth": 1.4}
    for (name, label), colour in zip(_OBJECTIVES.items(), CYCLE, strict=False):
        grid[0].plot(steps, [row[name] for row in rows], color=colour, label=label, **mark)
    grid[0].set(ylabel="nats a token", ylim=(0, None))
    grid[0].legend(fontsize=8, frameon=False)

    gaps = [row["gap"] for row in rows]
    grid[1].plot(steps, gaps, color=CYCLE[3], **mark)
    # A logarithm alone would hide a gap of 0, which is one where omega has followed theta.
    grid[1].set_yscale("symlog", linthresh=(max(gaps) or 1.0) / 100)
    grid[1].set(ylabel="gap g - v, nats a token", ylim=(0, None))

    most = math.log(candidates)
    label = f"ln {candidates}: all equal"
    grid[2].axhline(most, color=COLOURS["control"], linewidth=1, linestyle="--", label=label)
    entropies = [row["entropy"] for row in rows]
    grid[2].plot(steps, entropies, color=CYCLE[0], label="entropy of the weights")
    grid[2].set(ylabel="entropy, nats", ylim=(0, 1.05 * most or 1.0))
    weights = grid[2].twinx()
    weights.plot(steps, [row["weight"] for row in rows], color=CYCLE[1], label="largest weight")
    weights.set(ylabel="largest weight", ylim=(0, 1.05))
    grid[2].legend(handles=[*grid[2].lines, *weights.lines], fontsize=8, frameon=False)
    for axes in grid:
        axes.set_xlabel("outer step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
