"""Pictures of gradient spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from oneshot_lit.plots.style import COLOURS, mean


def energy_curves(spectra: Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]]) -> Figure:
    """Draw the cumulative energy of the gradients, mean over matrices, a panel for each stage.

    Args:
        spectra: Stage -> epoch -> parameter -> singular values, descending.
    """
    shown = {stage: epochs for stage, epochs in spectra.items() if epochs}
    figure, grid = plt.subplots(
        1,
        max(1, len(shown)),
        figsize=(4.4 * max(1, len(shown)), 3.4),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, (stage, epochs) in zip(grid[0], shown.items(), strict=True):
        numbers = sorted(epochs)
        for epoch in numbers:
            curves = [_energy(values) for values in epochs[epoch].values() if _alive(values)]
            width = max((len(c) for c in curves), default=0)
            mean = [mean([c[min(i, len(c) - 1)] for c in curves]) for i in range(width)]
            shade = 0.25 + 0.75 * (numbers.index(epoch) + 1) / len(numbers)
            label = f"epoch {epoch}" if epoch in (numbers[0], numbers[-1]) else None
            colour = COLOURS.get(stage, "#CC79A7")
            axes.plot(range(1, width + 1), mean, color=colour, alpha=shade, label=label)
        axes.axvline(20, color="black", alpha=0.3, linewidth=0.8, linestyle=":")
        axes.set(title=stage, xlabel="k (singular values kept)", xlim=(1, 60), ylim=(0, 1.02))
        axes.legend(fontsize=8, frameon=False, loc="lower right")
        axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].set_ylabel("CER(k), share of gradient energy")
    return figure


def _alive(values: Sequence[float]) -> bool:
    return len(values) > 0 and values[0] > 0


def _energy(values: Sequence[float]) -> list[float]:
    total, running, curve = sum(v * v for v in values), 0.0, []
    for value in values:
        running += value * value
        curve.append(running / total)
    return curve
