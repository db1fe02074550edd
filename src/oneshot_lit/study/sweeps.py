"""Sweeps: stages that differ in one number, drawn as curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.study.checks import mapping, stage_name

_NUMBER = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"


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
    if not isinstance(raw, (list, type(None))):
        raise OneShotError(f"{place}: must be a list of sweeps.")
    return tuple(_parse(each, stages, f"{place}[{i}]") for i, each in enumerate(raw or ()))


def _parse(raw: Any, stages: Sequence[str], place: str) -> Sweep:
    keys = mapping(raw, place, ("title", "x", "lines", "levels"))
    lines, levels = (
        mapping(
            keys.get("lines"), f"{place}.lines", what="a label to a stage name with '{}' in it"
        ),
        keys.get("levels") or [],
    )
    if not isinstance(levels, list):
        raise OneShotError(f"{place}.levels: must be a list of stage names.")
    x = str(keys.get("x", "value"))
    return Sweep(
        title=str(keys.get("title", x)),
        x=x,
        lines={str(k): _members(str(v), stages, f"{place}.lines.{k}") for k, v in lines.items()},
        levels=tuple(stage_name(level, stages, f"{place}.levels") for level in levels),
    )


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


def sweep_scores(sweep: Sweep, stages: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return measure -> what to draw: ``lines``, label -> (number, value), and ``levels``.

    The measures are the attack success rate and the over-refusal of the worst set, and the largest
    loss of a skill (any task score) against the model that the stage started from. A measure that
    no stage has is left out.

    Args:
        sweep: The sweep.
        stages: Stage name -> its entry in ``results.json``.
    """
    values = {name: _measures(stage, stages) for name, stage in stages.items()}
    scores = {}
    for measure in ("attack", "refusal", "loss"):
        lines = {
            label: [(x, v) for x, stage in members if (v := values[stage][measure]) is not None]
            for label, members in sweep.lines.items()
        }
        levels = {s: v for s in sweep.levels if (v := values[s][measure]) is not None}
        if any(lines.values()):
            scores[_TITLES[measure]] = {"lines": lines, "levels": levels}
    return scores


_TITLES = {
    "attack": "harmful prompts answered (worst set)",
    "refusal": "harmless prompts refused (worst set)",
    "loss": "largest loss of a skill",
}


def _measures(stage: Mapping[str, Any], stages: Mapping[str, Any]) -> dict[str, float | None]:
    from oneshot_lit.study.scores import ATTACK, REFUSAL, largest_loss, rates

    start = stages.get(stage.get("from", ""))
    loss = None if start is None else largest_loss(start["metrics"], stage["metrics"])
    return {
        "attack": max(rates(stage["metrics"], ATTACK).values(), default=None),
        "refusal": max(rates(stage["metrics"], REFUSAL).values(), default=None),
        "loss": None if loss is None else loss[1],
    }
