"""The figures of selectors over several cases: means, leads, and tests against chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.selection.ranking import chance_tests, holm
from experiments.selection.spec import Spec
from oneshot_lit.evaluation import intervals

COSTS = ("forward_rows", "backward_rows", "answers", "seconds")
# Smallest and largest possible values: a regret compares sums of three shares, the others of two.
_REGRETS, _HELD_OUT = (0.0, 3.0), (0.0, 2.0)
# Selector -> the scores of the candidates, in the pool's order.
Scores = Mapping[str, Sequence[float]]


def summarise(
    spec: Spec,
    cases: Mapping[str, Any],
    scores: Mapping[str, Scores],
    controls: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Return each selector's figures over the cases, and which one comes first.

    Args:
        spec: What to compare.
        cases: Name of a case -> its figures.
        scores: Name of a case -> every selector's scores, all of one pool.
        controls: Description of a control -> name of a case -> its held-out figures.
    """
    names = (spec.truth, *spec.selectors)
    overall = {name: _overall([c["selectors"][name] for c in cases.values()]) for name in names}
    _add_chance_tests(spec, overall, list(scores.values()))
    chance = [case["chance_regret"] for case in cases.values()]
    for row in overall.values():
        row["gain"] = sum(chance) / len(chance) - row["regret"]["value"]
    selectors = {n: overall[n] for n in spec.selectors}
    return {
        "truth": spec.truth,
        "goal": spec.goal,
        "question": spec.question,
        "controls": {text: _control(rows) for text, rows in controls.items()},
        "first": first(selectors),
        "leads": _leads(selectors, cases),
        "chance_regret": intervals.mean(chance, bounds=_REGRETS).as_dict(),
        "selectors": overall,
        "cases": dict(cases),
    }


def first(selectors: Mapping[str, Any]) -> str:
    """Return the selector with the lowest mean regret; of equal ones, the best ranking wins."""

    def key(name: str) -> tuple[float, float]:
        rho = selectors[name]["spearman"]["value"]
        return round(selectors[name]["regret"]["value"], 9), -rho

    return min(selectors, key=key)


def _leads(selectors: Mapping[str, Any], cases: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much lower the first one's regret is than each other's, case against case."""
    best = first(selectors)
    leads = {}
    for name in selectors:
        pairs = [
            (c["selectors"][name]["regret"], c["selectors"][best]["regret"]) for c in cases.values()
        ]
        leads[name] = intervals.mean([other - own for other, own in pairs]).as_dict()
    return {name: lead for name, lead in leads.items() if name != best}


def _overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    costs: dict[str, float | None] = {}
    for key in COSTS:
        known = [row[key] for row in rows if row[key] is not None]
        costs[key] = sum(known) / len(known) if len(known) == len(rows) else None
    return {
        "spearman": _mean(rows, "spearman"),
        "kendall": _mean(rows, "kendall"),
        "regret": intervals.mean([row["regret"] for row in rows], bounds=_REGRETS).as_dict(),
        "as_good": intervals.mean([row["as_good"] for row in rows]).as_dict(),
        "held_out": intervals.mean(
            [row["held_out"]["sum"] for row in rows], bounds=_HELD_OUT
        ).as_dict(),
        "gap": max(row["held_out"]["gap"] for row in rows),
        **costs,
    }


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return the mean over the cases; a ranking without any order counts as chance."""
    values = [row[key]["value"] for row in rows]
    return intervals.mean([0.0 if v is None else v for v in values], bounds=(-1, 1)).as_dict()


def _add_chance_tests(spec: Spec, overall: dict[str, Any], scores: Sequence[Scores]) -> None:
    """Add the p-values against chance, plain and adjusted for the number of selectors."""
    outcomes = [[-score for score in case[spec.truth]] for case in scores]
    p_values = {
        name: chance_tests([case[name] for case in scores], outcomes) for name in spec.selectors
    }
    for place, key in enumerate(("regret_p", "spearman_p")):
        plain = [p_values[name][place] for name in spec.selectors]
        for name, p, adjusted in zip(spec.selectors, plain, holm(plain), strict=True):
            overall[name] |= {key: p, f"{key}_adjusted": adjusted}


def _control(rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return a control's held-out figures by case, their mean, and the largest gap."""
    return {
        "cases": dict(rows),
        "held_out": intervals.mean(
            [row["sum"] for row in rows.values()], bounds=_HELD_OUT
        ).as_dict(),
        "gap": max(row["gap"] for row in rows.values()),
    }
