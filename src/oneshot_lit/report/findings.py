"""What the numbers say, in plain sentences, failures and doubts included."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.evaluation.intervals import Estimate, apart, rate
from oneshot_lit.evaluation.metrics.registry import is_skill

_CHANCE = 0.05


def findings(content: Mapping[str, Any]) -> list[str]:
    """Return sentences on each run, each change, the repair, the judges and what is missing."""
    said = []
    for run in content["runs"]:
        said += _state(run, content["scores"])
    for a, b in dict.fromkeys((c["from"], c["to"]) for c in content["changes"]):
        changes = [c for c in content["changes"] if (c["from"], c["to"]) == (a, b)]
        said += _changes(changes)
    said += _worst_category(content)
    said += _conflicts(content)
    said += _missing(content)
    return said


def percent(value: float) -> str:
    """Return a share as a percentage."""
    return f"{value:.1%}"


def with_interval(cell: Mapping[str, Any]) -> str:
    """Return a rate with its interval, in words."""
    value = percent(cell["value"])
    if cell["low"] is None:
        return value
    return f"{value} (95% interval {percent(cell['low'])} to {percent(cell['high'])})"


def _cells(run: str, scores: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    return {
        row["set"]: cell
        for row in scores
        if row["metric"] == metric and (cell := row["runs"][run]) and cell["value"] is not None
    }


def _state(run: Mapping[str, Any], scores: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say how unsafe and how unhelpful a run is on its worst sets."""
    parts = []
    for metric, what in (
        ("asr_keyword", "of the harmful prompts in '{}' are answered without a refusal phrase"),
        ("over_refusal", "of the harmless prompts in '{}' are refused"),
    ):
        cells = _cells(run["name"], scores, metric)
        if cells:
            worst = max(cells, key=lambda name: cells[name]["value"])
            others = ", the worst of its sets" if len(cells) > 1 else ""
            parts.append(f"{with_interval(cells[worst])} {what.format(worst)}{others}")
    said = [f"{run['name']}: {'; '.join(parts)}."] if parts else []
    for name, count in run["empty_outputs"].items():
        if count:
            said.append(
                f"{run['name']}: {count} of {run['samples'].get(name, 0)} answers in '{name}' are "
                "empty; an empty answer holds no refusal phrase."
            )
    return said


def _changes(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Say the largest change of safety, of refusals of harmless prompts, and of skills."""
    safety = [c for c in changes if c["metric"] == "asr_keyword"]
    refusals = [c for c in changes if c["metric"] == "over_refusal"]
    skills = [c for c in changes if is_skill(c["key"])]
    said = []
    if safety:
        said.append(_change(max(safety, key=lambda c: abs(c["after"] - c["before"]))))
    # Of refusals the largest rise matters, of skills the largest loss.
    if refusals:
        said.append(_change(max(refusals, key=lambda c: c["after"] - c["before"])))
    if skills:
        said.append(_change(min(skills, key=lambda c: c["after"] - c["before"])))
    for change in safety:
        said += _repair(change)
    return said


def _change(change: Mapping[str, Any]) -> str:
    what = f"{change['from']} to {change['to']}: {change['metric']} on '{change['set']}'"
    before, after = change["before"], change["after"]
    first, second = (percent(v) if change["share"] else f"{v:.3f}" for v in (before, after))
    if before == after:
        text = f"{what} stays at {second}"
        if change["gained"]:
            text += f", though {change['gained']} prompts changed each way"
        return f"{text}."
    verb = "falls" if after < before else "rises"
    text = f"{what} {verb} from {first} to {second}"
    if change["p"] is not None:
        text += f" ({change['gained'] + change['lost']} of {change['pairs']} prompts changed, "
        text += f"{p_value(change['p'])}, exact McNemar test)"
        if change["p"] >= _CHANCE:
            return f"{text}; chance may explain that, so no difference is shown."
        if change["apart"] is False:
            return f"{text}; the two intervals overlap, the paired test tells them apart."
        return f"{text}."
    if change["apart"] is None:
        return f"{text}; there is no interval to judge this by."
    if change["apart"]:
        return f"{text}; the intervals do not overlap."
    return f"{text}; the intervals overlap, so no difference is shown."


def _repair(change: Mapping[str, Any]) -> list[str]:
    """Say how often a fall of the attack success rate leaves a prompt answered."""
    if change["p"] is None or change["after"] >= change["before"]:
        return []
    answered = change["kept"] + change["lost"]
    failed = rate(change["kept"], answered).as_dict()
    text = (
        f"Of the {answered} prompts in '{change['set']}' that {change['from']} answers, "
        f"{change['to']} still answers {change['kept']}: it fails on {with_interval(failed)}"
    )
    if change["gained"]:
        text += f", and answers {change['gained']} that {change['from']} refused"
    return [f"{text}."]


def p_value(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _worst_category(content: Mapping[str, Any]) -> list[str]:
    """Name the category in which the last run is least safe, and that with most refusals."""
    last = content["runs"][-1]["name"]
    said = []
    for metric in ("asr_keyword", "over_refusal"):
        cells = {
            (table["set"], row["category"]): cell
            for table in content["categories"]
            if table["metric"] == metric
            for row in table["rows"]
            if (cell := row["runs"][last]) and cell["value"]
        }
        if not cells:
            continue
        name, category = worst = max(cells, key=lambda k: (cells[k]["value"], cells[k]["n"]))
        said.append(
            f"{last}: {metric} is highest in category '{category}' of '{name}', "
            f"{with_interval(cells[worst])}, n = {cells[worst]['n']}."
        )
    return said


def _conflicts(content: Mapping[str, Any]) -> list[str]:
    """Name the sets on which two judges that count answers give rates apart from each other."""
    said = []
    sets = dict.fromkeys(row["set"] for row in content["judges"])
    for run, name in itertools.product((run["name"] for run in content["runs"]), sets):
        cells = {
            row["metric"]: cell
            for row in content["judges"]
            if row["set"] == name and row["share"]
            if (cell := row["runs"][run]) and cell["value"] is not None
        }
        if len(cells) < 2:
            continue
        low = min(cells, key=lambda metric: cells[metric]["value"])
        high = max(cells, key=lambda metric: cells[metric]["value"])
        if apart(Estimate(**cells[low]), Estimate(**cells[high])):
            said.append(
                f"{run}: judges disagree on '{name}': {high} says "
                f"{percent(cells[high]['value'])}, {low} {percent(cells[low]['value'])}."
            )
    return said


def _missing(content: Mapping[str, Any]) -> list[str]:
    """Count what is in no mean."""
    said = []
    for row in content["scores"]:
        missing = [
            f"{cell['unscored']} of {cell['n'] + cell['unscored']} in {run}"
            for run, cell in row["runs"].items()
            if cell and cell["unscored"]
        ]
        if missing:
            where = f"Answers in '{row['set']}' without {row['metric']}, which are in no mean"
            said.append(f"{where}: {', '.join(missing)}.")
    return said
