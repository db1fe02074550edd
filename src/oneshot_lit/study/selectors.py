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
from oneshot_lit.selection.ranking import as_good, chance_regret, kendall, regret, spearman
from oneshot_lit.selection.rules import GENERAL
from oneshot_lit.study.selections import Selections


def compare_selectors(spec: Selections, root: Path, stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return every case's figures, and each selector's over the cases.

    Args:
        spec: What to compare.
        root: The study's folder.
        stages: Name of a tested stage -> its entry in ``results.json``.

    Raises:
        OneShotError: if the rankings of a case are not of the same candidates.
    """
    cases = {c: _case(spec, c, root, stages) for c in spec.cases}
    names = (spec.truth, *spec.selectors)
    chance = [case["chance_regret"] for case in cases.values()]
    overall = {}
    for name in names:
        rows = [case["selectors"][name] for case in cases.values()]
        gains = [c - row["regret"] for c, row in zip(chance, rows, strict=True)]
        overall[name] = {
            "spearman": _mean(rows, "spearman", (-1, 1)),
            "kendall": _mean(rows, "kendall", (-1, 1)),
            "regret": intervals.mean([row["regret"] for row in rows]).as_dict(),
            "gain_over_chance": intervals.mean(gains).as_dict(),
            "as_good": intervals.mean([row["as_good"] for row in rows]).as_dict(),
            "held_out": intervals.mean([row["held_out"]["sum"] for row in rows]).as_dict(),
            "gap": max(row["held_out"]["gap"] for row in rows),
            **{k: sum(r[k] for r in rows) / len(rows) for k in _COSTS},
        }
    return {
        "truth": spec.truth,
        "goal": spec.goal,
        "question": spec.question,
        "controls": {text: _control(spec, text, stages) for text in spec.controls},
        "winner": winner({n: overall[n] for n in spec.selectors}),
        "chance_regret": intervals.mean(chance).as_dict(),
        "selectors": overall,
        "cases": cases,
    }


_COSTS = ("forward_rows", "backward_rows", "answers", "seconds")


def winner(selectors: Mapping[str, Any]) -> str:
    """Return the selector of the lowest mean regret; of equal ones, that of the best ranking."""

    def key(name: str) -> tuple[float, float]:
        rho = selectors[name]["spearman"]["value"]
        return round(selectors[name]["regret"]["value"], 9), -(rho if rho is not None else -1)

    return min(selectors, key=key)


def _mean(rows: Sequence[Mapping[str, Any]], key: str, bounds: tuple[float, float]) -> Any:
    """Return the mean over the cases; a ranking without any order agrees by chance alone."""
    values = [row[key]["value"] for row in rows]
    return intervals.mean([0.0 if v is None else v for v in values], bounds=bounds).as_dict()


def _case(spec: Selections, case: str, root: Path, stages: Mapping[str, Any]) -> dict[str, Any]:
    names = (spec.truth, *spec.selectors)
    files = {n: root / spec.stage(spec.ranking, case, n) / SELECTION_FILE for n in names}
    found = {n: json.loads(file.read_text(encoding="utf-8")) for n, file in files.items()}
    truth = by_row(found[spec.truth])
    outcomes = [-score for score, _, _ in truth.values()]
    best = held_out(stages[spec.stage(spec.pick, case, spec.truth)])
    selectors = {}
    for name in names:
        ranked = by_row(found[name])
        if [digest for *_, digest in ranked.values()] != [d for *_, d in truth.values()]:
            raise OneShotError(
                f"{files[name]}: ranks other candidates than {files[spec.truth]}; give both the "
                "same pool."
            )
        scores = [score for score, _, _ in ranked.values()]
        first = found[name]["ranking"][0]
        pick = list(truth).index(first["row"])
        patched = held_out(stages[spec.stage(spec.pick, case, name)])
        facts = found[name]["provenance"]
        selectors[name] = {
            "pick": first["id"] or f"row {first['row']}",
            "category": first["category"],
            "outcome": outcomes[pick],
            "spearman": spearman(scores, outcomes).as_dict(),
            "kendall": kendall(scores, outcomes).as_dict(),
            "regret": regret(pick, outcomes),
            "as_good": as_good(pick, outcomes),
            "held_out": patched | {"gap": patched["sum"] - best["sum"]},
            **{key: facts.get(key, 0) for key in _COSTS},
        }
    return {
        "title": spec.cases[case],
        "selectors": selectors,
        "chance_regret": chance_regret(outcomes),
        "best": min(outcomes),
        "candidates": len(outcomes),
        "as_good_as_best": as_good(outcomes.index(min(outcomes)), outcomes),
        "categories": categories(truth),
    }


def _control(spec: Selections, text: str, stages: Mapping[str, Any]) -> dict[str, Any]:
    """Return a control's held-out figures by case, their mean, and the largest gap."""
    rows = {}
    for case in spec.cases:
        best = held_out(stages[spec.stage(spec.pick, case, spec.truth)])
        found = held_out(stages[spec.stage(spec.controls[text], case)])
        rows[case] = found | {"gap": found["sum"] - best["sum"]}
    return {
        "cases": rows,
        "held_out": intervals.mean([row["sum"] for row in rows.values()]).as_dict(),
        "gap": max(row["gap"] for row in rows.values()),
    }


def by_row(selection: Mapping[str, Any]) -> dict[int, tuple[float, str | None, str]]:
    """Return row -> score, category and digest of a ``selection.json``, in the pool's order."""
    rows = sorted(selection["ranking"], key=lambda each: each["row"])
    return {each["row"]: (each["score"], each["category"], each["digest"]) for each in rows}


def categories(truth: Mapping[int, tuple[float, str | None, str]]) -> dict[str, Any]:
    """Return category -> its outcomes, best median first, and how `general` compares."""
    found: dict[str, list[float]] = {}
    for score, category, _ in truth.values():
        found.setdefault(category or "none", []).append(-score)
    ordered = sorted(found, key=lambda name: (median(found[name]), sum(found[name])))
    return {name: sorted(found[name]) for name in ordered}


def general_against_category(case: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return the mean outcome of general and of category instances; None where one is missing."""
    general = case["categories"].get(GENERAL, [])
    others = [v for n, vs in case["categories"].items() if n != GENERAL for v in vs]
    if not general or not others:
        return None
    return sum(general) / len(general), sum(others) / len(others)


def held_out(stage: Mapping[str, Any]) -> dict[str, float]:
    """Return attack success and over-refusal on held-out prompts, each of the worst set."""
    metrics = stage["metrics"]
    asr = max((v for k, v in metrics.items() if k.endswith("/asr_keyword")), default=0.0)
    refused = max((v for k, v in metrics.items() if k.endswith("/over_refusal")), default=0.0)
    return {"asr": asr, "over_refusal": refused, "sum": asr + refused}
