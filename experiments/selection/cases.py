"""Each selector against the ground truth: case by case, and over the cases of all seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from experiments.selection.held_out import gap_interval, held_out
from experiments.selection.pictures import GENERAL
from experiments.selection.ranking import as_good, chance_regret, kendall, regret, spearman, top
from experiments.selection.spec import Spec
from experiments.selection.studies import FinishedStudy, Rankings, read_rankings, scores_of
from experiments.selection.summary import COSTS, summarise


def compare_selectors(spec: Spec, studies: Sequence[FinishedStudy]) -> dict[str, Any]:
    """Return the figures of every case, and of each selector over the cases of all studies.

    Args:
        spec: What to compare.
        studies: One study, or several of different seeds; then the seed is part of a case's name.

    Raises:
        OneShotError: if rankings are missing or have different candidates, or the test of a pick
            lacks a metric.
    """
    cases: dict[str, Any] = {}
    scores: dict[str, dict[str, list[float]]] = {}
    controls: dict[str, dict[str, Any]] = {text: {} for text in spec.controls}
    for study, rankings in zip(studies, read_rankings(spec, studies), strict=True):
        for case, title in spec.cases.items():
            name = case if len(studies) == 1 else f"seed {study.seed}/{case}"
            cases[name] = _case(spec, case, study, rankings[case])
            if len(studies) > 1:
                cases[name] |= {"title": f"seed {study.seed}, {title}", "group": title}
            scores[name] = scores_of(rankings[case])
            for text, pattern in spec.controls.items():
                controls[text][name] = _gap(spec, case, spec.stage(pattern, case), study)
    seeds = [study.seed for study in studies]
    return {"seeds": seeds, **summarise(spec, cases, scores, controls)}


def _case(spec: Spec, case: str, study: FinishedStudy, rankings: Rankings) -> dict[str, Any]:
    scores = scores_of(rankings)
    outcomes = [-score for score in scores[spec.truth]]
    selectors = {}
    for name, selection in rankings.items():
        facts = selection["provenance"]
        picked = min(selection["ranking"], key=lambda row: row["rank"])
        tied = top(scores[name])
        selectors[name] = {
            "pick": picked["id"] or f"row {picked['row']}",
            "category": picked["category"],
            "tied": len(tied),
            "outcome": outcomes[selection["ranking"].index(picked)],
            "spearman": spearman(scores[name], outcomes).as_dict(),
            "kendall": kendall(scores[name], outcomes).as_dict(),
            "regret": regret(scores[name], outcomes),
            "as_good": sum(as_good(outcomes[i], outcomes) for i in tied) / len(tied),
            "held_out": _gap(spec, case, spec.stage(spec.pick, case, name), study),
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


def _gap(spec: Spec, case: str, name: str, study: FinishedStudy) -> dict[str, Any]:
    """Return a patched model's held-out figures, and how far they are above the brute force's."""
    best = spec.stage(spec.pick, case, spec.truth)
    figures: dict[str, Any] = dict(held_out(study.stage(name), name))
    figures["gap"] = figures["sum"] - held_out(study.stage(best), best)["sum"]
    figures["gap_interval"] = gap_interval(
        study.root / name / "outcomes.jsonl", study.root / best / "outcomes.jsonl"
    )
    return figures


def categories(ranking: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Return category -> the outcomes of its candidates, best median first."""
    outcomes: dict[str, list[float]] = {}
    for row in ranking:
        outcomes.setdefault(row["category"] or "none", []).append(-row["score"])
    ordered = sorted(outcomes, key=lambda name: (median(outcomes[name]), sum(outcomes[name])))
    return {name: sorted(outcomes[name]) for name in ordered}


def general_against_category(case: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the mean outcome of general and of category instances; None if either is missing."""
    general = case["categories"].get(GENERAL, [])
    others = [v for n, vs in case["categories"].items() if n != GENERAL for v in vs]
    if not general or not others:
        return None
    return sum(general) / len(general), sum(others) / len(others)
