"""What the pictures of selections show, read back from the figures."""

from __future__ import annotations

import math
from typing import Any

import matplotlib.pyplot as plt

from oneshot_lit import plots


def step(number: int, gap: float = 0.1) -> dict[str, Any]:
    return {
        "step": number,
        "gamma": 0.1,
        "f": 2.0 - 0.1 * number,
        "g": 1.0 + gap,
        "v": 1.0,
        "gap": gap,
        "entropy": math.log(8) - 0.1 * number,
        "row": 3,
        "id": "a-1",
        "weight": 0.125 + 0.08 * number,
    }


def test_each_panel_draws_its_columns() -> None:
    rows = [step(n, gap=0.3 - 0.05 * n) for n in range(6)]
    panels = {"nats": ("f", "g", "v"), "gap": ("gap",), "entropy": ("entropy",)}
    figure = plots.progress(rows, "step", panels, {"entropy": ("all equal", math.log(8))})
    first, gap, certainty = figure.axes
    assert [list(line.get_ydata()) for line in first.lines] == [
        [row[name] for row in rows] for name in ("f", "g", "v")
    ]
    assert list(gap.lines[0].get_ydata()) == [row["gap"] for row in rows]
    entropy, level = certainty.lines
    assert set(level.get_ydata()) == {math.log(8)}
    assert list(entropy.get_ydata()) == [row["entropy"] for row in rows]
    plt.close(figure)


def test_one_step_of_one_candidate_draws() -> None:
    figure = plots.progress([step(0, gap=0.0)], "step", {"gap": ["gap"]}, {"gap": ("", 0.0)})
    figure.canvas.draw()
    plt.close(figure)
