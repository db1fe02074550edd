"""What a study of selections found: each selector against the ground truth, case by case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.report import intervals
from oneshot_lit.runs import SELECTION_FILE
from oneshot_lit.selection.ranking import (
    as_good,
    chance_regret,
    chance_tests,
    holm,
    kendall,
    regret,
    spearman,
    top,
)
from oneshot_lit.selection.rules import GENERAL
from oneshot_lit.study.held_out import gap_interval, held_out
from oneshot_lit.study.selections import Selections

_COSTS = ("forward_rows", "backward_rows", "answers", "seconds")
# The least and the most that a regret can be: outcomes are sums of three shares.
_REGRETS = (0.0, 3.0)


def compare_selectors(spec: Selections, root: Path, stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return every case's figures, and each selector's over the cases.

    Args:
        spec: What to compare.
        root: The study's folder.
        stages: Name of a tested stage -> its entry in ``results.json``.

    Raises:
        OneShotError: if rankings are not all of the same candidates, or a pick's test lacks a
            metric.
    """
    rankings = _rankings(spec, root)
    cases = {c: _case(spec, c, root, stages, rankings[c]) for c in spec.cases}
    names = (spec.truth, *spec.selectors)
    overall = {name: _overall([c["selectors"][name] for c in cases.values()]) for name in names}
    _add_chance_tests(spec, overall, rankings)
    chance = [case["chance_regret"] for case in cases.values()]
    for row in overall.values():
        row["gain"] = sum(chance) / len(chance) - row["regret"]["value"]
    return {
        "truth": spec.truth,
        "goal": spec.goal,
        "question": spec.question,
        "controls": {text: _control(spec, text, root, stages) for text in spec.controls},
        "first": first({n: overall[n] for n in spec.selectors}),
        "leads": _leads({n: overall[n] for n in spec.selectors}, cases),
        "chance_regret": intervals.mean(chance, bounds=_REGRETS).as_dict(),
        "selectors": overall,
        "cases": cases,
    }


def first(selectors: Mapping[str, Any]) -> str:
    """Return the selector of the lowest mean regret; of equal ones, that of the best ranking."""

    def key(name: str) -> tuple[float, float]:
        rho = selectors[name]["spearman"]["value"]
        return round(selectors[name]["regret"]["value"], 9), -rho

    return min(selectors, key=key)


def _leads(selectors: Mapping[str, Any], cases: Mapping[str, Any]) -> dict[str, Any]:
    """Return how much lower the first one's regret is than each other's, case against case."""
    best = first(selectors)
    found = {}
    for name in selectors:
        pairs = [
            (c["selectors"][name]["regret"], c["selectors"][best]["regret"]) for c in cases.values()
        ]
        found[name] = intervals.mean([other - own for other, own in pairs]).as_dict()
    return {name: lead for name, lead in found.items() if name != best}


def _overall(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    costs: dict[str, float | None] = {}
    for key in _COSTS:
        known = [row[key] for row in rows if row[key] is not None]
        costs[key] = sum(known) / len(known) if len(known) == len(rows) else None
    return {
        "spearman": _mean(rows, "spearman"),
        "kendall": _mean(rows, "kendall"),
        "regret": intervals.mean([row["regret"] for row in rows], bounds=_REGRETS).as_dict(),
        "as_good": intervals.mean([row["as_good"] for row in rows]).as_dict(),
        "held_out": intervals.mean([row["held_out"]["sum"] for row in rows]).as_dict(),
        "gap": max(row["held_out"]["gap"] for row in rows),
        **costs,
    }


def _mean(rows: Sequence[Mapping[str, Any]], key: str) -> dict[str, Any]:
    """Return the mean over the cases; a ranking without any order agrees by chance alone."""
    values = [row[key]["value"] for row in rows]
    return intervals.mean([0.0 if v is None else v for v in values], bounds=(-1, 1)).as_dict()


def _add_chance_tests(
    spec: Selections, overall: dict[str, Any], rankings: Mapping[str, Mapping[str, Any]]
) -> None:
    """Add the p-values against chance, and what the number of selectors leaves of them."""
    outcomes = [[-s for s in _scores(rankings[c][spec.truth])] for c in spec.cases]
    found = {
        name: chance_tests([_scores(rankings[c][name]) for c in spec.cases], outcomes)
        for name in spec.selectors
    }
    for place, key in enumerate(("regret_p", "spearman_p")):
        plain = [found[name][place] for name in spec.selectors]
        for name, p, adjusted in zip(spec.selectors, plain, holm(plain), strict=True):
            overall[name] |= {key: p, f"{key}_adjusted": adjusted}


def _rankings(spec: Selections, root: Path) -> dict[str, dict[str, Any]]:
    """Return case -> selector -> its ``selection.json``."""
    found: dict[str, dict[str, Any]] = {}
    pool: list[str] | None = None
    for case in spec.cases:
        found[case] = {}
        for name in (spec.truth, *spec.selectors):
            file = root / spec.stage(spec.ranking, case, name) / SELECTION_FILE
            content = json.loads(file.read_text(encoding="utf-8"))
            content["ranking"].sort(key=lambda row: row["row"])
            digests = [row["digest"] for row in content["ranking"]]
            pool = digests if pool is None else pool
            if digests != pool:
                raise OneShotError(
                    f"{file}: ranks other candidates than the rest; give all the same pool."
                )
            found[case][name] = content
    return found


def _scores(selection: Mapping[str, Any]) -> list[float]:
    return [row["score"] for row in selection["ranking"]]


def _case(
    spec: Selections,
    case: str,
    root: Path,
    stages: Mapping[str, Any],
    rankings: Mapping[str, Any],
) -> dict[str, Any]:
    outcomes = [-score for score in _scores(rankings[spec.truth])]
    selectors = {}
    for name, selection in rankings.items():
        scores, facts = _scores(selection), selection["provenance"]
        picked = min(selection["ranking"], key=lambda row: row["rank"])
        tied = top(scores)
        selectors[name] = {
            "pick": picked["id"] or f"row {picked['row']}",
            "category": picked["category"],
            "tied": len(tied),
            "outcome": outcomes[selection["ranking"].index(picked)],
            "spearman": spearman(scores, outcomes).as_dict(),
            "kendall": kendall(scores, outcomes).as_dict(),
            "regret": regret(scores, outcomes),
            "as_good": sum(as_good(outcomes[i], outcomes) for i in tied) / len(tied),
            "held_out": _gap(spec, case, spec.stage(spec.pick, case, name), root, stages),
            **{key: facts.get(key) for key in _COSTS},
        }
    return {
        "title": spec.cases[case],
        "selectors": selectors,
        "chance_regret": chance_regret(outcomes),
        "best": min(outcomes),
        "candidates": len(outcomes),
        "as_good_as_best": as_good(min(outcomes), outcomes),
        "categories": categories(rankings[spec.truth]["ranking"]),
    }


def _gap(
    spec: Selections, case: str, name: str, root: Path, stages: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a patched model's held-out figures, and how far they are above the brute force's."""
    best = spec.stage(spec.pick, case, spec.truth)
    found: dict[str, Any] = dict(held_out(stages[name], name))
    found["gap"] = found["sum"] - held_out(stages[best], best)["sum"]
    found["gap_interval"] = gap_interval(
        root / name / "outcomes.jsonl", root / best / "outcomes.jsonl"
    )
    return found


def _control(spec: Selections, text: str, root: Path, stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return a control's held-out figures by case, their mean, and the largest gap."""
    rows = {
        case: _gap(spec, case, spec.stage(spec.controls[text], case), root, stages)
        for case in spec.cases
    }
    return {
        "cases": rows,
        "held_out": intervals.mean([row["sum"] for row in rows.values()]).as_dict(),
        "gap": max(row["gap"] for row in rows.values()),
    }


def categories(ranking: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return category -> the outcomes of its candidates, best median first."""
    found: dict[str, list[float]] = {}
    for row in ranking:
        found.setdefault(row["category"] or "none", []).append(-row["score"])
    ordered = sorted(found, key=lambda name: (median(found[name]), sum(found[name])))
    return {name: sorted(found[name]) for name in ordered}


def general_against_category(case: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the mean outcome of general and of category instances; None where one is missing."""
    general = case["categories"].get(GENERAL, [])
    others = [v for n, vs in case["categories"].items() if n != GENERAL for v in vs]
    if not general or not others:
        return None
    return sum(general) / len(general), sum(others) / len(others)
