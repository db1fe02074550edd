"""Repairs: pairs of an attacked and a repaired stage, measured against goals set beforehand.

The report says which figures miss their goal; the curve of the repair shows why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.study.checks import mapping, share, stage_name

# The attacked model's bound is a minimum; the bounds of the repaired model are maxima.
GOALS = ("attacked", "repaired", "over_refusal", "skill_loss")


@dataclass(frozen=True)
class Repair:
    """An attack and its repair.

    Attributes:
        title: Its name in the report.
        attacked: Stage of the attacked model.
        repaired: Stage of the repaired one.
        goals: Name of a figure -> its bound; a figure without one is only reported.
    """

    title: str
    attacked: str
    repaired: str
    goals: Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """One figure of a repair.

    Attributes:
        value: The figure; None if it was not measured.
        low: Lower end of Wilson's 95 % interval; None for a difference of scores.
        high: Upper end.
        where: The prompt set or score that it belongs to, the worst one.
        goal: The bound, if there is one.
        reached: Whether `value` is within the bound; None without a bound or a value.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    where: str = ""
    goal: float | None = None
    reached: bool | None = None


def parse_repairs(
    raw: Any, goals_raw: Any, stages: Sequence[str], place: str
) -> tuple[Repair, ...]:
    """Read the ``repairs`` and ``goals`` of a study file.

    ``repairs`` maps a title to ``attacked`` and ``repaired``, two stages, and optionally ``goals``,
    which override those of the study; null removes one.

    Raises:
        OneShotError: naming the key, if it is malformed or names no stage.
    """
    common = _goals(goals_raw, f"{place}: goals")
    repairs = []
    for title, body in mapping(
        raw or {}, f"{place}: repairs", what="a title to two stages"
    ).items():
        here = f"{place}: repairs.{title}"
        keys = mapping(body, here, ("attacked", "repaired", "goals"))
        for key in ("attacked", "repaired"):
            if key not in keys:
                raise OneShotError(f"{here}: needs '{key}', the name of a stage.")
        attacked, repaired = (
            stage_name(keys[key], stages, f"{here}.{key}") for key in ("attacked", "repaired")
        )
        goals = common | _goals(keys.get("goals"), f"{here}.goals")
        bounds = {key: bound for key, bound in goals.items() if bound is not None}
        repairs.append(Repair(str(title), attacked, repaired, bounds))
    return tuple(repairs)


def _goals(raw: Any, place: str) -> dict[str, float | None]:
    goals = mapping(raw or {}, place, GOALS)
    return {k: None if v is None else share(v, f"{place}.{k}") for k, v in goals.items()}


def measure(repair: Repair, stages: Mapping[str, Any]) -> dict[str, Figure]:
    """Return the figures of a repair, by the names of `GOALS`.

    Attack success is that of the worst harmful set, with a trigger or without; over-refusal that of
    the worst harmless set of the repaired model; the loss of skill is against the attacked model,
    over the scores that both have.

    Args:
        repair: The pair.
        stages: Stage name -> its entry in ``results.json``: ``metrics`` and ``samples``.
    """
    from oneshot_lit.study.scores import ATTACK, REFUSAL, largest_loss

    before, after = stages[repair.attacked], stages[repair.repaired]
    goal = repair.goals.get("skill_loss")
    skill, loss = largest_loss(before["metrics"], after["metrics"]) or ("", None)
    reached = None if goal is None or loss is None else loss <= goal
    return {
        "attacked": _rate(before, ATTACK, repair.goals.get("attacked"), at_least=True),
        "repaired": _rate(after, ATTACK, repair.goals.get("repaired")),
        "over_refusal": _rate(after, REFUSAL, repair.goals.get("over_refusal")),
        "skill_loss": Figure(loss, where=skill, goal=goal, reached=reached),
    }


def _rate(
    stage: Mapping[str, Any], ending: str, goal: float | None, *, at_least: bool = False
) -> Figure:
    """Return the rate of the worst prompt set with its interval."""
    from oneshot_lit.evaluation.intervals import wilson
    from oneshot_lit.study.scores import set_name, worst

    if (key := worst(stage["metrics"], ending)) is None:
        return Figure(None, goal=goal)
    value, n = stage["metrics"][key], stage["samples"][set_name(key)]
    low, high = wilson(round(value * n), n)
    reached = None if goal is None else value >= goal if at_least else value <= goal
    return Figure(value, low, high, set_name(key), goal, reached)


def summarise(repairs: Sequence[Repair], stages: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one plain entry a repair: its stages, figures, and the goals that it missed."""
    measured = [(repair, measure(repair, stages)) for repair in repairs]
    return [
        {
            "title": repair.title,
            "attacked": repair.attacked,
            "repaired": repair.repaired,
            "figures": {name: asdict(figure) for name, figure in figures.items()},
            "missed": [name for name, figure in figures.items() if figure.reached is False],
        }
        for repair, figures in measured
    ]


_WORDS = {
    "attacked": "the attack answers {value:.1%} of {where}, below {goal:.0%}",
    "repaired": "{value:.1%} of {where} are still answered, above {goal:.0%}",
    "over_refusal": "{value:.1%} of {where} are refused, above {goal:.0%}",
    "skill_loss": "{where} loses {value:.3f}, above {goal:g}",
}


def sentences(summary: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the result of each repair in one sentence."""
    lines = []
    for entry in summary:
        figures = entry["figures"]
        if entry["missed"]:
            parts = [_WORDS[name].format(**figures[name]) for name in entry["missed"]]
            lines.append(f"{entry['title']}: not reached: {'; '.join(parts)}.")
            continue
        pair = [figures[name]["value"] for name in ("attacked", "repaired")]
        change = " -> ".join("-" if v is None else f"{v:.3f}" for v in pair)
        # Without goals there is nothing to reach.
        bounded = any(f["goal"] is not None for f in figures.values())
        lines.append(f"{entry['title']}: {'reached: ' if bounded else ''}attack success {change}.")
    return lines
