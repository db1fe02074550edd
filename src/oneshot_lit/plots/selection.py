"""Pictures of a selection: its steps, or the score of each candidate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oneshot_lit.plots.style import COLOURS, CYCLE

GENERAL = "general"


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
    grid[1].axhline(0, color="black", linewidth=0.8, alpha=0.5)
    grid[1].plot(steps, gaps, color=CYCLE[3], **mark)
    # A logarithm alone would hide a gap of 0, which is one where omega has followed theta.
    size = max((abs(gap) for gap in gaps), default=0.0) or 1.0
    grid[1].set_yscale("symlog", linthresh=size / 100)
    grid[1].set(ylabel="gap g - v, nats a token")

    _draw_certainty(grid[2], steps, rows, candidates)
    for axes in grid:
        axes.set_xlabel("outer step")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


_OBJECTIVES = {
    "f": "f, upper objective",
    "g": "g, weighted loss of theta",
    "v": "v, weighted loss of omega",
}


def _draw_certainty(
    axes: Axes, steps: Sequence[int], rows: Sequence[Mapping[str, Any]], candidates: int
) -> None:
    most = math.log(candidates)
    label = f"ln {candidates}: all equal"
    axes.axhline(most, color=COLOURS["control"], linewidth=1, linestyle="--", label=label)
    axes.plot(
        steps, [row["entropy"] for row in rows], color=CYCLE[0], label="entropy of the weights"
    )
    axes.set(ylabel="entropy, nats", ylim=(0, 1.05 * most or 1.0))
    weights = axes.twinx()
    weights.plot(steps, [row["weight"] for row in rows], color=CYCLE[1], label="largest weight")
    weights.set(ylabel="largest weight", ylim=(0, 1.05))
    weights.spines["top"].set_visible(False)
    for row in _named(rows):
        high = row["weight"] > 0.6
        weights.plot(row["step"], row["weight"], "o", color=CYCLE[1], markersize=5)
        weights.annotate(
            row["id"] or f"row {row['row']}",
            (row["step"], row["weight"]),
            xytext=(0, -7 if high else 7),
            textcoords="offset points",
            rotation=90,
            ha="center",
            va="top" if high else "bottom",
            fontsize=8,
        )
    handles = [*axes.lines, weights.lines[0]]
    # Above the panel, as the names need the space inside.
    axes.legend(
        handles=handles,
        fontsize=8,
        frameon=False,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        columnspacing=1.0,
        handlelength=1.4,
    )


def _named(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the steps at which another candidate came first; of close ones the latest."""
    changes = [rows[0], *(b for a, b in itertools.pairwise(rows) if a["row"] != b["row"])]
    apart = 0.06 * len(rows)
    steps: list[Mapping[str, Any]] = []
    for row in reversed(changes):
        if not steps or steps[-1]["step"] - row["step"] >= apart:
            steps.append(row)
    return steps


def candidate_scores(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw every candidate's development score, one column a category, best median first.

    Args:
        rows: The rows of ``candidates.csv``.
    """
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["category"] or "no category", []).append(row["score"])
    figure, axes = plt.subplots(figsize=(2.2 + 0.62 * len(scores), 4.4), layout="constrained")
    draw_outcomes(axes, scores)
    axes.set_ylabel("development score\nafter the patch (0 is best)")
    axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0))
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
