"""What a repair can reach: harmful refusal against over-refusal, on two sets of prompts.

Two figures answer two questions. The attainable refusal is the largest share of harmful development
prompts that any step refuses at an over-refusal within the bound; it is the best of many on the
same prompts, so it flatters. The held-out scores are those of the one step that the development
prompts chose; they are honest, but another step may have been better.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.callbacks.realignment_curve import read_curve
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.posttuning.low_rank.step_search import SEARCH_TABLE
from oneshot_lit.methods.posttuning.step_selection import attack_rate, refusal_rate


@dataclass(frozen=True)
class Point:
    """What the development prompts showed at one step of a repair.

    Attributes:
        refused: Share of the harmful prompts that were refused.
        over_refusal: Share of the harmless prompts that were refused, of the worst set.
        kept: Whether the step was chosen.
        repaired: False for the attacked model itself, before the first step.
    """

    refused: float
    over_refusal: float
    kept: bool = False
    repaired: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def read_points(folder: Path) -> list[Point]:
    """Return the steps of a repair: those of its training, or those that its search tried.

    Raises:
        OneShotError: if the folder has neither table.
    """
    points = [
        Point(1 - attack_rate(row), refusal_rate(row), bool(row["kept"]), row["step"] > 0)
        for row in read_curve(folder)
    ]
    if points:
        return points
    table = folder / SEARCH_TABLE
    if not table.is_file():
        raise OneShotError(f"{folder}: has no table of its steps; run the study again.")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or "refusal" not in rows[0]:
        raise OneShotError(f"{table}: the step was not chosen by prompts; give data.val_sets.")
    return [
        Point(1 - float(row["attack"]), float(row["refusal"]), row["kept"] == "1") for row in rows
    ]


def attainable(points: Sequence[Point], bound: float, attacked: float = 0.0) -> float:
    """Return the largest share of harmful prompts refused at an over-refusal within the bound.

    Args:
        points: The steps of a repair.
        bound: Largest over-refusal, of the worst set.
        attacked: The attacked model's own share: doing nothing is always possible.
    """
    # A share of 32 prompts is no exact decimal.
    within = [point.refused for point in points if point.over_refusal <= bound + 1e-9]
    return max([attacked, *within])


def staircase(points: Sequence[Point]) -> list[tuple[float, float]]:
    """Return the corners of `attainable` as a function of the bound: (bound, refused), rising."""
    corners: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda each: (each.over_refusal, -each.refused)):
        if not corners or point.refused > corners[-1][1]:
            corners.append((point.over_refusal, point.refused))
    return corners


def held_out(entry: Mapping[str, Any], name: str) -> dict[str, dict[str, float]]:
    """Return a stage's refusals on held-out prompts: set -> ``refused`` and ``n``, a count each.

    Args:
        entry: The stage's entry in ``results.json``.
        name: Its name, for the error.

    Raises:
        OneShotError: if the test lacks a harmful or a harmless set.
    """
    sets: dict[str, dict[str, float]] = {}
    kinds = set()
    for key, value in entry["metrics"].items():
        prompts, _, metric = key.rpartition("/")
        if metric in ("asr_keyword", "over_refusal") and value is not None:
            kinds.add(metric)
            n = entry["samples"][prompts]
            share = 1 - value if metric == "asr_keyword" else value
            sets[prompts] = {"refused": round(share * n), "n": n, "harmful": metric[0] == "a"}
    if len(kinds) < 2:
        raise OneShotError(
            f"stages.{name}.test: needs a set of harmful and one of harmless prompts."
        )
    return sets
