"""Pictures of gradient spectra.

Spectra are given as time (epoch or step) -> parameter -> singular values, descending.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from oneshot_lit.plots.style import mean
from oneshot_lit.spectral import effective_rank

Spectra = Mapping[int, Mapping[str, Sequence[float]]]
# Beyond these a curve is flat, and what matters is squeezed to the left.
_MOST_SHOWN = 60


def energy_curves(spectra: Mapping[str, Spectra], time: str = "epoch") -> Figure:
    """Draw CER(k), the mean over matrices: a panel for each stage, a curve for each epoch or step.

    Args:
        spectra: Stage, or another title of the panel -> its spectra.
        time: ``epoch`` or ``step``.
    """
    shown = {stage: times for stage, times in spectra.items() if times}
    count = max(1, len(shown))
    size = (6.4, 4) if count == 1 else (4.4 * count, 3.4)
    figure, grid = plt.subplots(
        1, count, figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, (stage, times) in zip(grid[0], shown.items(), strict=True):
        numbers = sorted(times)
        colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(numbers)))
        spread = np.linspace(0, len(numbers) - 1, min(8, len(numbers))).astype(int)
        named = {numbers[i] for i in spread}
        widest = 1
        for number, colour in zip(numbers, colours, strict=True):
            heights = _mean_energy(times[number])
            widest = max(widest, len(heights))
            places = range(1, len(heights) + 1)
            label = f"{time} {number}" if number in named else None
            axes.plot(places, heights, ".-", markersize=3, color=colour, label=label)
        for k in (1, 5, 10, 20):
            if k <= widest:
                axes.axvline(k, color="black", alpha=0.25, linewidth=0.8, linestyle=":")
        axes.set(
            title=stage,
            xlabel="k, largest singular values of each matrix",
            xlim=(0.5, min(_MOST_SHOWN, widest) + 0.5),
            ylim=(0, 1.02),
        )
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize=8, frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("share of the gradient's energy, CER(k)")
    return figure


def _alive(values: Sequence[float]) -> bool:
    return len(values) > 0 and values[0] > 0


def _mean_energy(spectra: Mapping[str, Sequence[float]]) -> list[float]:
    """Return CER(1), CER(2) ..., the mean over matrices; a curve that has ended stays at 1."""
    energies = [np.square(values) for values in spectra.values() if _alive(values)]
    curves = np.ones((len(energies), max(map(len, energies), default=0)))
    for curve, energy in zip(curves, energies, strict=True):
        curve[: len(energy)] = energy.cumsum() / energy.sum()
    return list(curves.mean(axis=0)) if energies else []


def rank_map(spectra: Mapping[str, Sequence[float]], when: str) -> Figure:
    """Draw the effective rank of every matrix, layers against kinds of matrix.

    Args:
        spectra: Parameter -> singular values, of one time.
        when: That time, for the title.
    """
    cells: dict[tuple[int, str], list[float]] = defaultdict(list)
    outside: list[str] = []
    for name, values in spectra.items():
        if not _alive(values):
            continue
        rank = effective_rank(torch.tensor(values, dtype=torch.float64))
        place = _layer_and_kind(name)
        if place is None:
            outside.append(f"{name.removesuffix('.weight').rsplit('.', 1)[-1]} {rank:.1f}")
        else:
            cells[place].append(rank)
    layers = sorted({layer for layer, _ in cells})
    kinds = list(dict.fromkeys(kind for _, kind in cells))
    table = np.full((max(1, len(layers)), max(1, len(kinds))), np.nan)
    for (layer, kind), ranks in cells.items():
        table[layers.index(layer), kinds.index(kind)] = mean(ranks)
    height = 1.9 + 0.28 * max(3, min(len(layers), 60))
    figure, axes = plt.subplots(
        figsize=(max(5.5, 1.6 + 0.85 * len(kinds)), height), layout="constrained"
    )
    image = axes.imshow(table, aspect="auto", origin="lower", cmap="viridis")
    figure.colorbar(image, label="effective rank")
    if table.size <= 150:
        middle = float(np.nanmean(table)) if cells else 0.0
        for (row, column), value in np.ndenumerate(table):
            if not np.isnan(value):
                shade = "white" if value < middle else "black"
                axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=shade)
    labels = [".".join(kind.split(".")[-2 if "lora_" in kind else -1 :]) for kind in kinds]
    axes.set_xticks(range(len(kinds)), labels, rotation=30, ha="right")
    every = max(1, len(layers) // 20)
    axes.set_yticks(range(0, len(layers), every), [str(n) for n in layers[::every]])
    axes.set(ylabel="layer", title=f"Effective rank of the gradients, {when}")
    if outside:
        axes.set_xlabel("outside the layers: " + ", ".join(outside), fontsize=8)
    return figure


def decay_curves(spectra: Spectra, time: str = "epoch") -> Figure:
    """Draw how singular values fall off: the median over matrices and the middle 80 %."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    numbers = sorted(spectra)
    shown = list(dict.fromkeys([numbers[0], numbers[-1]])) if numbers else []
    for number, colour in zip(shown, ("#0072B2", "#D55E00"), strict=False):
        spectra_now = [v for v in spectra[number].values() if _alive(v)]
        width = max((len(v) for v in spectra_now), default=0)
        relative = np.full((len(spectra_now), width), np.nan)
        for row, values in enumerate(spectra_now):
            relative[row, : len(values)] = np.asarray(values) / values[0]
        if not width:
            continue
        # A matrix of lower rank has fewer values; the missing ones are zeros, which no log scale
        # shows.
        filled = np.maximum(np.nan_to_num(relative), 1e-12)
        low, middle, high = np.quantile(filled, (0.1, 0.5, 0.9), axis=0)
        places = np.arange(1, width + 1)
        axes.plot(places, middle, color=colour, label=f"{time} {number}: median matrix")
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xlim(0.5, min(_MOST_SHOWN, width) + 0.5)
    axes.set(
        yscale="log",
        ylim=(1e-6, 1.3),
        title="How fast the singular values fall",
        xlabel="index of the singular value",
        ylabel="relative to the largest",
    )
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.2)
    if axes.lines:
        axes.legend(fontsize=8, frameon=False, title="band: 80 % of the matrices", title_fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _layer_and_kind(name: str) -> tuple[int, str] | None:
    """Return the layer's number and what is left of a parameter's name, or None outside layers."""
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)", name.removesuffix(".weight"))
    if match is None:
        return None
    # Experts of one layer share a cell.
    kind = re.sub(r"\.\d+(?=\.|$)", "", match[2]).replace(".base_layer", "")
    return int(match[1]), kind.replace(".default", "")
