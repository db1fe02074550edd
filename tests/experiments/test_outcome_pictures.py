"""What the picture of brute force's outcomes shows, read back from the figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pytest
from matplotlib.colors import to_hex

from experiments.selection.pictures import draw_outcomes
from oneshot_lit.plots.style import COLOURS


def test_candidates_stand_by_category_the_best_median_first() -> None:
    figure, axes = plt.subplots()
    scores = {"theft": [0.4, 0.6, 0.0], "general": [0.1, 0.2], "no category": [0.9]}
    draw_outcomes(axes, scores)
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels == ["general (2)", "theft (3)", "no category (1)"]
    dots = [sorted(each.get_offsets()[:, 1]) for each in axes.collections]
    assert dots == [[0.1, 0.2], [0.0, 0.4, 0.6], [0.9]]
    # Each dot in its own column, and none on another.
    for place, each in enumerate(axes.collections):
        x = each.get_offsets()[:, 0]
        assert all(abs(x - place) < 0.5)
        assert len(set(x)) == len(x)
    assert [line.get_ydata()[0] for line in axes.lines] == pytest.approx([0.15, 0.4, 0.9])
    colours = [to_hex(each.get_facecolor()[0]).upper() for each in axes.collections]
    assert colours == [COLOURS["patched"], COLOURS["aligned"], COLOURS["aligned"]]
    plt.close(figure)
