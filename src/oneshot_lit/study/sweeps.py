"""Sweeps: stages that differ in one number, drawn as curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from oneshot_lit.errors import OneShotError, did_you_mean

_KEYS = ("title", "x", "lines", "levels")


@dataclass(frozen=True)
class Sweep:
    """A picture of the scores against one number.

    Attributes:
        title: Heading of the picture.
        x: What the number is.
        lines: Label of a curve -> its stages, as (number, stage name) in rising order.
        levels: Stages without a number, drawn as horizontal lines.
    """

    title: str
    x: str
    lines: Mapping[str, tuple[tuple[float, str], ...]]
    levels: tuple[str, ...] = ()


def parse_sweeps(raw: Any, stages: Sequence[str], place: str) -> tuple[Sweep, ...]:
    """Read the ``sweeps`` of a study file.

    Each is a mapping of ``title``, ``x``, ``lines`` (label -> stage name with ``{}`` in place of
    the number) and ``levels`` (a list of stage names).

    Raises:
        OneShotError: naming the key, for a shape that is not so or a name that is no stage's.
    """
    if raw is None:
        return ()
    if not isinstance(raw, list):
        raise OneShotError(f"{place}: must be a list of sweeps.")
    return tuple(_parse(each, stages, f"{place}[{i}]") for i, each in enumerate(raw))


def _parse(raw: Any, stages: Sequence[str], place: str) -> Sweep:
    if not isinstance(raw, Mapping):
        raise OneShotError(f"{place}: must be a mapping of {', '.join(_KEYS)}.")
    for key in raw:
        if key not in _KEYS:
            raise OneShotError(f"{place}: unknown key '{key}'{did_you_mean(str(key), _KEYS)}.")
    lines, levels = raw.get("lines"), raw.get("levels") or []
    if not isinstance(lines, Mapping) or not lines:
        raise OneShotError(f"{place}.lines: must map a label to a stage name with '{{}}' in it.")
    if not isinstance(levels, list):
        raise OneShotError(f"{place}.levels: must be a list of stage names.")
    for level in levels:
        if level not in stages:
            hint = did_you_mean(str(level), stages)
            raise OneShotError(f"{place}.levels: '{level}' is no stage{hint}.")
    found = {str(k): _members(str(v), stages, f"{place}.lines.{k}") for k, v in lines.items()}
    x = str(raw.get("x", "value"))
    return Sweep(str(raw.get("title", x)), x, found, tuple(str(level) for level in levels))


def _members(pattern: str, stages: Sequence[str], place: str) -> tuple[tuple[float, str], ...]:
    before, mark, after = pattern.partition("{}")
    number = r"(-?\d+(?:\.\d+)?(?:e-?\d+)?)"
    found = []
    for stage in stages:
        match = re.fullmatch(re.escape(before) + number + re.escape(after), stage)
        if mark and match:
            found.append((float(match[1]), stage))
    if not found:
        raise OneShotError(f"{place}: no stage matches '{pattern}'; put '{{}}' for the number.")
    return tuple(sorted(found))


def sweep_scores(sweep: Sweep, stages: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return measure -> what is drawn: ``lines``, label -> (number, value), and ``levels``.

    The measures are the attack success rate and the over-refusal of the worst set, and the largest
    loss of a skill (any task score) against the model that the stage started from; one that no
    stage has is left out.

    Args:
        sweep: The sweep.
        stages: Stage name -> its entry in ``results.json``.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, measure in MEASURES.items():
        lines = {
            label: [(x, v) for x, stage in members if (v := measure(stage, stages)) is not None]
            for label, members in sweep.lines.items()
        }
        levels = {s: v for s in sweep.levels if (v := measure(s, stages)) is not None}
        if any(lines.values()):
            found[name] = {"lines": lines, "levels": levels}
    return found


def _attack(stage: str, stages: Mapping[str, Any]) -> float | None:
    return max(_ending(stages[stage], "/asr_keyword").values(), default=None)


def _refusal(stage: str, stages: Mapping[str, Any]) -> float | None:
    return max(_ending(stages[stage], "/over_refusal").values(), default=None)


def _loss(stage: str, stages: Mapping[str, Any]) -> float | None:
    start = stages.get(stages[stage].get("from"))
    if start is None:
        return None
    # A study that only parses needs no torch.
    from oneshot_lit.evaluation.metrics.registry import is_skill

    now, before = (each["metrics"] for each in (stages[stage], start))
    return max((before[k] - now[k] for k in now if k in before and is_skill(k)), default=None)


def _ending(stage: Mapping[str, Any], end: str) -> dict[str, float]:
    return {k: v for k, v in stage["metrics"].items() if k.endswith(end)}


MEASURES = {
    "harmful prompts answered (worst set)": _attack,
    "harmless prompts refused (worst set)": _refusal,
    "largest loss of a skill": _loss,
}
