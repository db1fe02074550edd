"""Two pictures: the frontier of each repair by depth, and predictors against repairability."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.real_depth.findings import interval
from experiments.real_depth.measures import PREDICTORS
from oneshot_lit.plots.style import CYCLE

_MARKERS = "osD^vPX*"
_COLUMNS, _PREDICTOR_COLUMNS = 4, 5


def frontier_by_depth(results: Mapping[str, Any]) -> Figure:
    """Draw harmful refusal against over-refusal, a panel a case, a line a repair.

    A line is the best development refusal within each over-refusal, the mean over the seeds; a
    marker is the held-out result of the step that the development prompts chose, of one seed.
    """
    cases = list(results["cases"].values())
    columns = min(_COLUMNS, len(cases))
    rows = math.ceil(len(cases) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.3 * columns, 3.1 * rows + 0.5), layout="constrained",
        squeeze=False, sharex=True, sharey=True,
    )  # fmt: skip
    for axes, case in zip(grid.flat, cases, strict=False):
        _frontier(axes, case, results)
    for axes in grid.flat[len(cases) :]:
        axes.set_visible(False)
    handles = [
        plt.Line2D([], [], color=CYCLE[i], marker=_MARKERS[i], label=label)
        for i, label in enumerate(results["labels"].values())
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    figure.supxlabel(
        "harmless prompts refused (worst set): lines development, markers held out", fontsize=10
    )
    figure.supylabel("harmful prompts refused", fontsize=10)
    return figure


def _frontier(axes: Axes, case: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    bounds = np.linspace(0, 1, 201)
    axes.axvspan(-0.03, results["bound"], color="#009E73", alpha=0.1, linewidth=0, zorder=0)
    for i, repair in enumerate(results["labels"]):
        if (own := case["repairs"].get(repair)) is None:
            continue
        lines = [_steps(stairs, bounds) for stairs in own["staircase"].values()]
        # Lines that coincide stay visible.
        axes.plot(bounds, np.mean(lines, 0), color=CYCLE[i], linewidth=2.6 - 0.4 * i, alpha=0.9)
        held = own["held_out"]
        axes.plot(
            list(held["over_refusal"]["by_seed"].values()),
            list(held["refused"]["by_seed"].values()),
            _MARKERS[i],
            color=CYCLE[i],
            markersize=6,
            markeredgecolor="white",
            linestyle="none",
            zorder=3 + i,
        )
    axes.set_title(case["title"], fontsize=9)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.05))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _steps(stairs: Sequence[Sequence[float]], bounds: Any) -> Any:
    """Return the best refusal within each bound; 0 below the first corner."""
    best = np.zeros(len(bounds))
    for over_refusal, refused in stairs:
        best[bounds >= over_refusal - 1e-9] = refused
    return best


def predictors_picture(results: Mapping[str, Any]) -> Figure:
    """Draw each measure of an attacked model against what each repair attains there.

    A colour is a repair, a marker a case; the titles have Spearman's correlation for the first two
    repairs that are in most cases.
    """
    cases = results["cases"]
    most = max(_count(cases, repair) for repair in results["labels"])
    repairs = [r for r in results["labels"] if _count(cases, r) == most][:2]
    columns = _PREDICTOR_COLUMNS
    rows = math.ceil(len(PREDICTORS) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.1 * columns, 3.0 * rows + 0.9), layout="constrained",
        sharey=True,
    )  # fmt: skip
    order = list(results["labels"])
    for axes, (name, label) in zip(grid.flat, PREDICTORS.items(), strict=False):
        for repair in repairs:
            for marker, case in zip(_MARKERS * 2, cases.values(), strict=False):
                _dots(axes, case, repair, name, CYCLE[order.index(repair)], marker)
        axes.set_xlabel(_wrapped(label), fontsize=8)
        axes.set_title(_correlation(results, repairs, name), fontsize=8)
        axes.set_ylim(-0.05, 1.05)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in list(grid.flat)[len(PREDICTORS) :]:
        axes.set_visible(False)
    handles = [
        plt.Line2D([], [], color=CYCLE[order.index(r)], linewidth=4, label=results["labels"][r])
        for r in repairs
    ]
    handles += [
        plt.Line2D([], [], color="#444", marker=marker, linestyle="none", label=case["title"])
        for marker, case in zip(_MARKERS * 2, cases.values(), strict=False)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.supylabel(f"attainable refusal at over-refusal <= {results['bound']:g}", fontsize=10)
    return figure


def _count(cases: Mapping[str, Any], repair: str) -> int:
    return sum(repair in case["repairs"] for case in cases.values())


def _dots(
    axes: Axes, case: Mapping[str, Any], repair: str, name: str, colour: str, marker: str
) -> None:
    own = case["repairs"].get(repair)
    for seed, measures in case["measures"].items() if own is not None else ():
        if seed in own["attainable"]["by_seed"]:
            axes.plot(
                measures[name],
                own["attainable"]["by_seed"][seed],
                marker,
                color=colour,
                alpha=0.8,
                markersize=5,
                markeredgewidth=0,
            )


def _correlation(results: Mapping[str, Any], repairs: Sequence[str], name: str) -> str:
    parts = []
    for repair in repairs:
        estimate = results["prediction"].get(repair, {}).get(name)
        parts.append(f"{results['labels'][repair]}: {interval(estimate)}")
    return "\n".join(parts)


def _wrapped(label: str, width: int = 34) -> str:
    if len(label) <= width:
        return label
    cut = label.rfind(" ", 0, width)
    return f"{label[:cut]}\n{label[cut + 1 :]}"
