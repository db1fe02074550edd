"""Sweeps: stages that differ in one number, drawn as curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from oneshot_lit.errors import OneShotError
from oneshot_lit.report.scores import ATTACK, REFUSAL, largest_loss, worst
from oneshot_lit.study.checks import mapping, stage_name

_NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
_LOSS = "largest loss of a skill"


@dataclass(frozen=True)
class Sweep:
    """A picture of the scores against one number.

    Attributes:
        title: Heading of the picture.
        x: The meaning of the number.
        lines: Label of a curve -> its stages, as (number, stage name) in rising order.
        levels: Stages without a number, drawn as horizontal lines.
    """

    title: str
    x: str
    lines: Mapping[str, tuple[tuple[float, str], ...]]
    levels: tuple[str, ...] = ()


def parse_sweeps(raw: Any, stages: Sequence[str], place: str) -> tuple[Sweep, ...]:
    """Read the ``sweeps`` of a study file.

    Each is a mapping of ``title``, ``x``, ``lines`` (label -> stage name with ``{}`` for the
    number) and ``levels`` (a list of stage names).

    Raises:
        OneShotError: naming the key, if it is malformed or names no stage.
    """
    sweeps = []
    for i, each in enumerate(raw or ()):
        here = f"{place}[{i}]"
        keys = mapping(each, here, ("title", "x", "lines", "levels"))
        x = str(keys.get("x", "value"))
        lines = {
            str(label): _members(str(pattern), stages, f"{here}.lines.{label}")
            for label, pattern in mapping(keys.get("lines"), f"{here}.lines").items()
        }
        levels = tuple(stage_name(s, stages, f"{here}.levels") for s in keys.get("levels") or ())
        sweeps.append(Sweep(str(keys.get("title", f"{x}: {', '.join(lines)}")), x, lines, levels))
    return tuple(sweeps)


def _members(pattern: str, stages: Sequence[str], place: str) -> tuple[tuple[float, str], ...]:
    before, mark, after = pattern.partition("{}")
    matches = [
        (float(match[1]), stage)
        for stage in stages
        if mark and (match := re.fullmatch(re.escape(before) + _NUMBER + re.escape(after), stage))
    ]
    if not matches:
        raise OneShotError(f"{place}: no stage matches '{pattern}'; put '{{}}' for the number.")
    return tuple(sorted(matches))


def sweep_scores(
    sweep: Sweep, scores: pd.DataFrame, origins: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Return measure -> what to draw: ``lines``, label -> (number, value), and ``levels``.

    The measures are the attack success rate and the over-refusal of the worst set, and the largest
    loss of a skill (any task score) against the stage that the model comes from. A measure that no
    stage has is left out.

    Args:
        sweep: The sweep.
        scores: The scores of a report that has all its stages.
        origins: Stage -> the one that its model comes from.
    """
    drawn = {}
    for title, measure in (
        ("harmful prompts answered (worst set)", ATTACK),
        ("harmless prompts refused (worst set)", REFUSAL),
        (_LOSS, _LOSS),
    ):

        def value(stage: str, measure: str = measure) -> float | None:
            if measure == _LOSS:
                loss = largest_loss(scores, origins.get(stage, ""), stage)
                return None if loss is None else loss[1]
            row = worst(scores, stage, measure)
            return None if row is None else float(row["value"])

        lines = {
            label: [(x, y) for x, stage in members if (y := value(stage)) is not None]
            for label, members in sweep.lines.items()
        }
        levels = {stage: y for stage in sweep.levels if (y := value(stage)) is not None}
        if any(lines.values()):
            drawn[title] = {"lines": lines, "levels": levels}
    return drawn
