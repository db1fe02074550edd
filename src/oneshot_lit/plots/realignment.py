"""A picture of the steps of a realignment."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.evaluation.metrics.registry import is_skill
from oneshot_lit.plots.style import CYCLE


def step_curve(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw every development rate of a realignment against its steps.

    Args:
        rows: The rows of ``realignment.csv``.
    """
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    styles = {"asr_keyword": "-", "over_refusal": "--"}
    drawn = [n for n in rows[0] if n.rsplit("/", 1)[-1] in styles or is_skill(n)]
    sets = list(dict.fromkeys(name.rsplit("/", 1)[0] for name in drawn))
    for name in drawn:
        owner, metric = name.rsplit("/", 1)
        times, values = _with_restarts(rows, name)
        axes.plot(
            times,
            values,
            styles.get(metric, ":"),
            color=CYCLE[sets.index(owner) % len(CYCLE)],
            # Curves that coincide stay visible, as each has smaller markers than the one before.
            marker="o",
            markersize=6 - 4 * drawn.index(name) / len(drawn),
            label=name.replace("_", " "),
        )
    for attempt in sorted({row.get("attempt", 1) for row in rows})[1:]:
        place = max(row["step"] for row in rows if row.get("attempt", 1) < attempt)
        axes.axvline(place, color="black", alpha=0.3, linewidth=0.8, linestyle="-")
        label = f" {2 ** int(attempt - 1)}x rate"
        axes.annotate(label, (place, 1.09), ha="left", va="top", fontsize=8, alpha=0.7)
    best = next((row["step"] for row in rows if row["kept"]), None)
    if best is not None:
        axes.axvline(best, color="#009E73", alpha=0.25, linewidth=8, zorder=0)
        axes.annotate(f"kept: step {best:g}", (best, 1.02), ha="center", va="bottom", fontsize=9)
    axes.set(xlabel="realignment step", ylabel="share of development prompts", ylim=(-0.03, 1.1))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _with_restarts(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """Return steps and values; a later attempt is a curve of its own, from the broken model on."""
    steps, values = [rows[0]["step"]], [rows[0][name]]
    for before, row in itertools.pairwise(rows):
        if row.get("attempt", 1) != before.get("attempt", 1):
            steps += [float("nan"), before["step"]]
            values += [float("nan"), rows[0][name]]
        steps.append(row["step"])
        values.append(row[name])
    return steps, values


def prompt_search_curve(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what development prompts showed at every step that a low-rank repair tried.

    Args:
        rows: The rows of ``step_search.csv``, with ``guard_lambda``, ``attack`` and ``refusal``.
    """
    lambdas = sorted({row["guard_lambda"] for row in rows})
    figure, axes = plt.subplots(figsize=(7.5, 3.8), layout="constrained")
    for colour, each in zip(itertools.cycle(CYCLE), lambdas, strict=False):
        drawn = sorted((r for r in rows if r["guard_lambda"] == each), key=lambda r: r["alpha"])
        for column, style, what in (
            ("attack", "o-", "harmful answered"),
            ("refusal", "s--", "harmless refused"),
        ):
            axes.plot(
                [r["alpha"] for r in drawn],
                [r[column] for r in drawn],
                style,
                color=colour,
                markersize=4,
                linewidth=1,
                label=f"lambda {each:g}: {what}",
            )
    best = next(row for row in rows if row["kept"])
    axes.axvline(best["alpha"], color="#009E73", alpha=0.25, linewidth=8, zorder=0)
    axes.annotate(
        f"taken: {best['alpha']:.3g}, lambda {best['guard_lambda']:g}",
        (best["alpha"], 1.02),
        ha="center",
        va="bottom",
        fontsize=9,
    )
    axes.set(
        xscale="log",
        xlabel="step size alpha",
        ylabel="share of development prompts",
        ylim=(-0.03, 1.1),
    )
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    return figure
