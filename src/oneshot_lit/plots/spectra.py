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
from numpy.typing import NDArray

from oneshot_lit.spectral import effective_rank

Spectra = Mapping[int, Mapping[str, Sequence[float]]]
# Beyond these a curve is flat, and what matters is squeezed to the left.
_MOST_SHOWN = 60


def energy_curves(spectra: Spectra, time: str = "epoch") -> Figure:
    """Draw CER(k), the mean over matrices, and how singular values fall off, their median.

    Args:
        spectra: The spectra; each epoch or step is a curve.
        time: ``epoch`` or ``step``.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4), layout="constrained")
    numbers = sorted(spectra)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.9, len(numbers)))
    spread = np.linspace(0, len(numbers) - 1, min(8, len(numbers))).astype(int)
    named = {numbers[i] for i in spread}
    widest = 1
    for number, colour in zip(numbers, colours, strict=True):
        relative = _relative(spectra[number])
        if not len(relative):
            continue
        energy = np.square(relative).cumsum(axis=1) / np.square(relative).sum(axis=1, keepdims=True)
        widest = max(widest, relative.shape[1])
        places = range(1, relative.shape[1] + 1)
        look = {"markersize": 3, "color": colour}
        look |= {"label": f"{time} {number}"} if number in named else {}
        left.plot(places, energy.mean(axis=0), ".-", **look)
        # No logarithmic scale shows zeros.
        right.plot(places, np.maximum(np.median(relative, axis=0), 1e-12), ".-", **look)
    for k in (1, 5, 10, 20):
        if k <= widest:
            left.axvline(k, color="black", alpha=0.25, linewidth=0.8, linestyle=":")
    left.set(ylabel="share of the gradient's energy, CER(k)", ylim=(0, 1.02))
    right.set(ylabel="k-th singular value, relative to the largest", yscale="log", ylim=(1e-6, 1.3))
    for axes in (left, right):
        axes.set(xlabel="k, largest first", xlim=(0.5, min(_MOST_SHOWN, widest) + 0.5))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
    if left.get_legend_handles_labels()[1]:
        left.legend(fontsize=8, frameon=False, loc="lower right")
    return figure


def _alive(values: Sequence[float]) -> bool:
    return len(values) > 0 and values[0] > 0


def _relative(spectra: Mapping[str, Sequence[float]]) -> NDArray[np.float64]:
    """Return (matrices, values): singular values relative to the largest, then zeros.

    Matrices without a gradient are left out.
    """
    alive = [np.asarray(values) / values[0] for values in spectra.values() if _alive(values)]
    padded = np.zeros((len(alive), max(map(len, alive), default=0)))
    for row, values in zip(padded, alive, strict=True):
        row[: len(values)] = values
    return padded


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
        table[layers.index(layer), kinds.index(kind)] = np.mean(ranks)
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


def _layer_and_kind(name: str) -> tuple[int, str] | None:
    """Return the layer's number and what is left of a parameter's name, or None outside layers."""
    match = re.match(r"(?:.*?\.)?(\d+)\.(.+)", name.removesuffix(".weight"))
    if match is None:
        return None
    # Experts of one layer share a cell.
    kind = re.sub(r"\.\d+(?=\.|$)", "", match[2]).replace(".base_layer", "")
    return int(match[1]), kind.replace(".default", "")
