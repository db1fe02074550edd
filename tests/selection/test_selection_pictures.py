"""What the pictures of selections show, read back from the figures."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from oneshot_lit import plots
from oneshot_lit.plots.style import COLOURS


def step(number: int, row: int, name: str | None, gap: float = 0.1) -> dict[str, Any]:
    return {
        "step": number,
        "gamma": 0.1,
        "f": 2.0 - 0.1 * number,
        "g": 1.0 + gap,
        "v": 1.0,
        "gap": gap,
        "entropy": math.log(8) - 0.1 * number,
        "row": row,
        "id": name,
        "weight": 0.125 + 0.08 * number,
    }


def test_the_course_has_objectives_gap_and_certainty() -> None:
    names = [(3, "a-1"), (3, "a-1"), (5, None), (5, None), (3, "a-1"), (3, "a-1")]
    rows = [step(n, *named, gap=0.3 - 0.1 * n) for n, named in enumerate(names)]
    figure = plots.selection_course(rows, 8)
    first, gap, certainty, weights = figure.axes
    assert [list(line.get_ydata()) for line in first.lines] == [
        [row[name] for row in rows] for name in ("f", "g", "v")
    ]
    # A gap below 0 shows as well.
    assert gap.get_yscale() == "symlog"
    assert list(gap.lines[1].get_ydata()) == [row["gap"] for row in rows]
    assert gap.get_ylim()[0] < min(row["gap"] for row in rows)
    level, entropy = certainty.lines
    assert set(level.get_ydata()) == {math.log(8)}
    assert list(entropy.get_ydata()) == [row["entropy"] for row in rows]
    assert list(weights.lines[0].get_ydata()) == [row["weight"] for row in rows]
    # Named where another one comes first.
    assert {(text.get_text(), text.xy[0]) for text in weights.texts} == {
        ("a-1", 0),
        ("row 5", 2),
        ("a-1", 4),
    }
    plots.close(figure)


def test_names_that_would_lie_on_each_other_give_way_to_the_later() -> None:
    rows = [step(n, n % 2 if n < 60 else 7, f"c-{n}") for n in range(100)]
    figure = plots.selection_course(rows, 8)
    places = sorted(text.xy[0] for text in figure.axes[3].texts)
    assert places[-1] == 60
    assert all(b - a >= 6 for a, b in itertools.pairwise(places))
    plots.close(figure)


def test_one_step_of_one_candidate_draws() -> None:
    figure = plots.selection_course([step(0, 1, "a", gap=0.0)], 1)
    figure.canvas.draw()
    plots.close(figure)


def outcome(category: str | None, score: float) -> dict[str, Any]:
    return {"row": 1, "id": "x", "category": category, "score": score}


def test_candidates_stand_by_category_the_best_median_first() -> None:
    scores = {"theft": [0.4, 0.6, 0.0], "general": [0.1, 0.2], None: [0.9]}
    rows = [outcome(name, value) for name, values in scores.items() for value in values]
    figure = plots.candidate_scores(rows)
    (axes,) = figure.axes
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
    from matplotlib.colors import to_hex

    colours = [to_hex(each.get_facecolor()[0]).upper() for each in axes.collections]
    assert colours == [COLOURS["patched"], COLOURS["aligned"], COLOURS["aligned"]]
    plots.close(figure)
