"""Pictures of scores with their intervals, over runs and over categories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from oneshot_lit.plots.style import COLOURS, CYCLE

if TYPE_CHECKING:
    import pandas as pd

_MARKERS = "osD^vPX"
# A picture with more rows is too long to read.
_MOST_ROWS = 60


def run_colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each run: that of its name where it has one, else the next free one."""
    fixed = {name: COLOURS[name] for name in names if name in COLOURS}
    free = [colour for colour in CYCLE if colour not in fixed.values()] or list(CYCLE)
    others = [name for name in names if name not in fixed]
    return fixed | {name: free[i % len(free)] for i, name in enumerate(others)}


def rates_with_intervals(scores: pd.DataFrame, colours: Mapping[str, str]) -> Figure:
    """Draw a line of points for each score, one for each run, with its 95% interval.

    Args:
        scores: Columns ``row`` (the name of the score), ``run``, ``value``, ``low`` and ``high``,
            from 0 to 1; a score without an interval is a point alone.
        colours: Run -> its colour.
    """
    names = list(dict.fromkeys(scores["row"]))[:_MOST_ROWS]
    height = 1.3 + len(names) * (0.22 + 0.13 * len(colours))
    figure, axes = plt.subplots(figsize=(7.5, height), layout="constrained")
    step = 0.7 / max(1, len(colours))
    for number, (run, colour) in enumerate(colours.items()):
        own = scores[(scores["run"] == run) & scores["row"].isin(names)]
        reach = [own["value"] - own["low"], own["high"] - own["value"]]
        axes.errorbar(
            own["value"],
            own["row"].map(names.index) + (number - (len(colours) - 1) / 2) * step,
            # Rounding may put an end of the interval just past the value.
            xerr=np.nan_to_num(reach).clip(min=0),
            fmt=_MARKERS[number % len(_MARKERS)],
            color=colour,
            markersize=5,
            capsize=3,
            linewidth=1.4,
            label=run[:40],
        )
    for row in range(1, len(names)):
        axes.axhline(row - 0.5, color="black", alpha=0.1, linewidth=0.8)
    axes.set_yticks(range(len(names)), [name[:40] for name in names], fontsize=9)
    axes.set(xlim=(-0.02, 1.02), ylim=(len(names) - 0.5, -0.5))
    axes.set_xlabel("share or mean, 95% interval")
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=min(4, len(colours)), fontsize=9, frameon=False)
    return figure
