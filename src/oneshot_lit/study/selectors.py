"""What a study of selections found: each selector against the ground truth, case by case."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.runs import SELECTION_FILE
from oneshot_lit.methods.select.ranking import (
    as_good,
    chance_regret,
    kendall,
    regret,
    spearman,
    top,
)
from oneshot_lit.methods.select.rules import GENERAL
from oneshot_lit.study.held_out import gap_interval, held_out
from oneshot_lit.study.selections import Selections
from oneshot_lit.study.selector_summary import COSTS, summarise


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
    rankings = read_rankings(spec, root)
    cases = {c: _case(spec, c, root, stages, rankings[c]) for c in spec.cases}
    controls = {
        text: {c: _gap(spec, c, spec.stage(pattern, c), root, stages) for c in spec.cases}
        for text, pattern in spec.controls.items()
    }
    return summarise(spec, cases, scores_of(rankings), controls)


def read_rankings(spec: Selections, root: Path) -> dict[str, dict[str, Any]]:
    """Return case -> selector -> its ``selection.json``, its ranking in the pool's order.

    Raises:
        OneShotError: if one is missing, or not of the same candidates as the rest.
    """
    found: dict[str, dict[str, Any]] = {}
    pool: list[str] | None = None
    for case in spec.cases:
        found[case] = {}
        for name in (spec.truth, *spec.selectors):
            file = root / spec.stage(spec.ranking, case, name) / SELECTION_FILE
            if not file.is_file():
                raise OneShotError(f"{file}: the ranking is missing; run the study again.")
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


def scores_of(rankings: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Return case -> selector -> the candidates' scores, of what `read_rankings` returns."""
    return {
        case: {name: _scores(content) for name, content in found.items()}
        for case, found in rankings.items()
    }


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
            **{key: facts.get(key) for key in COSTS},
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
