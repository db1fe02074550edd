"""All figures of the study: what each repair reaches in each case, over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.real_depth.frontier import attainable, held_out, read_points, staircase
from experiments.real_depth.prediction import correlations
from experiments.real_depth.spec import DepthSpec
from experiments.selection.studies import FinishedStudy
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation import intervals

# Seed -> case -> what was measured at the attacked model.
Measures = Mapping[int, Mapping[str, Mapping[str, Any]]]


def compare(
    spec: DepthSpec, studies: Sequence[FinishedStudy], measures: Measures
) -> dict[str, Any]:
    """Return the figures of every case and repair, the contrasts and the correlations.

    Args:
        spec: What to compare.
        studies: The same study at one or more seeds.
        measures: What was measured at the attacked models.

    Raises:
        OneShotError: if a stage or a table of steps is missing, or no case has a repair.
    """
    cases = {case: _case(spec, case, studies, measures) for case in spec.cases}
    for repair in spec.repairs:
        if not any(repair in case["repairs"] for case in cases.values()):
            raise OneShotError(
                f"repairs.{repair}: no case has a stage for it, such as "
                f"{next(iter(spec.cases))}_{repair}."
            )
    return {
        "bound": spec.bound,
        "seeds": [study.seed for study in studies],
        "labels": dict(spec.repairs),
        "cases": cases,
        "contrasts": _contrasts(spec, cases),
        "prediction": correlations(cases, list(spec.repairs)),
    }


def _case(
    spec: DepthSpec, case: str, studies: Sequence[FinishedStudy], measures: Measures
) -> dict[str, Any]:
    aligned = str(spec.cases[case]["aligned"])
    repairs = {
        repair: _repair(spec, case, f"{case}_{repair}", studies)
        for repair in spec.repairs
        if any(f"{case}_{repair}" in study.results["stages"] for study in studies)
    }
    return {
        "title": spec.cases[case]["title"],
        "aligned": scores(aligned, studies),
        "attacked": scores(case, studies),
        "repairs": repairs,
        "measures": {str(seed): dict(own[case]) for seed, own in measures.items() if case in own},
    }


def _repair(
    spec: DepthSpec, case: str, stage: str, studies: Sequence[FinishedStudy]
) -> dict[str, Any]:
    values, points, stairs = {}, {}, {}
    for study in studies:
        entry = study.stage(stage)
        own = read_points(study.root / stage)
        if entry.get("from", case) != case:
            # It goes on from another repair, whose last step is a repaired model.
            own = [replace(point, repaired=True) for point in own]
        start = _attacked_share(study.root / case, own, spec)
        values[str(study.seed)] = attainable(own, spec.bound, start)
        points[str(study.seed)] = [point.as_dict() for point in own]
        stairs[str(study.seed)] = staircase(own)
    estimate = intervals.mean(list(values.values()), bounds=(0, 1)).as_dict()
    return {
        "attainable": estimate | {"by_seed": values},
        "points": points,
        "staircase": stairs,
        "held_out": scores(stage, studies),
    }


def _attacked_share(folder: Path, points: Sequence[Any], spec: DepthSpec) -> float:
    """Return the attacked model's own refusals on the development prompts; 0 if none are known."""
    before = [p.refused for p in points if not p.repaired]
    for repair in spec.repairs if not before else ():
        # A search by projection does not record the model that it starts from; a training does.
        other = folder.with_name(f"{folder.name}_{repair}") / "realignment.csv"
        if other.is_file():
            before = [p.refused for p in read_points(other.parent) if not p.repaired]
            break
    return max(before, default=0.0)


def scores(stage: str, studies: Sequence[FinishedStudy]) -> dict[str, Any]:
    """Return a stage's held-out refusals over all seeds.

    ``refused`` and ``over_refusal`` have ``value`` with Wilson's interval over the prompts of all
    seeds, ``by_seed``, and ``seeds``, the mean with Student's interval over the seeds. Over-refusal
    is that of the worst harmless set, of all seeds together in the first and of each seed in the
    others. The prompts are the same at every seed, so only the last interval speaks of new seeds,
    and neither speaks of both.
    """
    each = {str(study.seed): held_out(study.stage(stage), stage) for study in studies}
    by_seed = {
        "refused": {seed: _rate(sets, True) for seed, sets in each.items()},
        "over_refusal": {seed: _rate(sets, False) for seed, sets in each.items()},
    }
    pooled: dict[str, dict[str, float]] = {}
    for sets in each.values():
        for name, counts in sets.items():
            total = pooled.setdefault(name, {"refused": 0, "n": 0, "harmful": counts["harmful"]})
            total["refused"] += counts["refused"]
            total["n"] += counts["n"]
    result = {}
    for key, harmful in (("refused", True), ("over_refusal", False)):
        worst = _worst(pooled, harmful)
        values = by_seed[key]
        result[key] = {
            **intervals.rate(int(worst["refused"]), int(worst["n"])).as_dict(),
            "by_seed": values,
            "seeds": intervals.mean(list(values.values()), bounds=(0, 1)).as_dict(),
        }
    return result


def _worst(sets: Mapping[str, Mapping[str, float]], harmful: bool) -> Mapping[str, float]:
    """Return the counts of the worst set: least refused of the harmful, most of the harmless."""
    own = [counts for counts in sets.values() if bool(counts["harmful"]) == harmful]
    sign = -1 if harmful else 1
    return max(own, key=lambda counts: sign * counts["refused"] / counts["n"])


def _rate(sets: Mapping[str, Mapping[str, float]], harmful: bool) -> float:
    worst = _worst(sets, harmful)
    return worst["refused"] / worst["n"]


def _contrasts(spec: DepthSpec, cases: Mapping[str, Any]) -> dict[str, Any]:
    """Return cause -> repair -> the difference of the attainable refusal, seed against seed."""
    differences: dict[str, Any] = {}
    for cause, (less, more) in spec.contrasts.items():
        for repair in spec.repairs:
            pair = [cases[case]["repairs"].get(repair) for case in (less, more)]
            if None in pair:
                continue
            before, after = (each["attainable"]["by_seed"] for each in pair)
            gaps = [after[seed] - before[seed] for seed in before]
            estimate = intervals.mean(gaps, bounds=(-1, 1)).as_dict()
            differences.setdefault(cause, {})[repair] = estimate
    return differences
