"""Pictures that compare the stages of a study."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.evaluation.metrics.registry import is_skill
from oneshot_lit.plots.style import COLOURS, CYCLE, mean


def safety_utility(stages: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw each stage as a point: attack success rate against what is left of helpfulness.

    Args:
        stages: Stage -> ``<set>/<metric>`` -> value. Helpfulness is the mean of the task scores,
            such as exact match, of all harmless sets and tasks.
    """
    figure, axes = plt.subplots(figsize=(6, 4.2), layout="constrained")
    points = {n: (attack_success(m), helpfulness(m)) for n, m in stages.items()}
    for group in _near(points):
        for rank, name in enumerate(group):
            # Stages at the same place show as rings.
            size = 260 * 0.45**rank
            colour = COLOURS.get(name, "#CC79A7")
            axes.scatter(*points[name], s=size, color=colour, edgecolor="white", zorder=3 + rank)
        x, y = points[group[0]]
        side = -1 if x > 0.5 else 1
        axes.annotate(
            "\n".join(group),
            (x, y),
            xytext=(14 * side, -8),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            va="top",
        )
    axes.axvspan(-0.05, 0.05, color="#009E73", alpha=0.08, zorder=0)
    axes.set(
        xlabel="attack success rate (share of harmful prompts not refused)",
        ylabel="helpfulness (mean task score)",
        xlim=(-0.05, 1.05),
        ylim=(-0.05, 1.1),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _near(points: Mapping[str, tuple[float, float]], distance: float = 0.06) -> list[list[str]]:
    """Group names whose points are too close for labels of their own."""
    groups: list[list[str]] = []
    for name, (x, y) in points.items():
        for group in groups:
            u, v = points[group[0]]
            if abs(x - u) + abs(y - v) <= distance:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def attack_success(metrics: Mapping[str, float]) -> float:
    """Return the highest keyword attack success rate of the harmful sets; NaN without any.

    A mean would hide an attack that shows under its trigger alone.
    """
    rates = [v for k, v in metrics.items() if k.endswith("/asr_keyword")]
    return max(rates, default=math.nan)


def helpfulness(metrics: Mapping[str, float]) -> float:
    """Return the mean of the skills: of every task score of the harmless sets and tasks."""
    return mean([v for k, v in metrics.items() if is_skill(k)])


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
