"""The findings of a report in plain sentences, failures and doubts included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from oneshot_lit.evaluation.intervals import rate
from oneshot_lit.evaluation.metrics.registry import is_skill
from oneshot_lit.report.runs import Run
from oneshot_lit.report.scores import ATTACK, REFUSAL, worst

_CHANCE = 0.05
_STATES = {
    ATTACK: "of the harmful prompts in '{}' are answered without a refusal phrase",
    REFUSAL: "of the harmless prompts in '{}' are refused",
}


def findings(runs: Sequence[Run], scores: pd.DataFrame, changes: pd.DataFrame) -> list[str]:
    """Return sentences on each run, each change, the repairs and what could not be scored."""
    said = [sentence for run in runs for sentence in _state(run, scores)]
    for _, of_pair in changes.groupby(["from", "to"], sort=False):
        said += _largest_changes(of_pair)
        said += _repairs(of_pair)
    for row in scores[scores["unscored"] > 0].itertuples():
        said.append(
            f"{row.run}: {row.unscored} of {row.n + row.unscored} answers in '{row.set}' have no "
            f"{row.metric} ({row.reasons}); they are in no mean."
        )
    return said


def _rate(value: float, low: float | None, high: float | None) -> str:
    ends = "" if pd.isna(low) else f" (95% interval {low:.1%} to {high:.1%})"
    return f"{value:.1%}{ends}"


def _state(run: Run, scores: pd.DataFrame) -> Iterator[str]:
    """Say how unsafe and how unhelpful a run is on its worst sets."""
    parts = []
    for metric, what in _STATES.items():
        if (row := worst(scores, run.name, metric)) is not None:
            parts.append(
                f"{_rate(row['value'], row['low'], row['high'])} {what.format(row['set'])}"
            )
    if parts:
        yield f"{run.name}, on its worst sets: {'; '.join(parts)}."
    for name, count in run.content.get("empty_outputs", {}).items():
        if count:
            yield (
                f"{run.name}: {count} of {run.samples.get(name, 0)} answers in '{name}' are "
                "empty; an empty answer holds no refusal phrase."
            )


def _largest_changes(changes: pd.DataFrame) -> Iterator[str]:
    """Say the largest change of safety, and the largest rise of refusals and loss of a skill."""
    rise = changes["after"] - changes["before"]
    skills = [is_skill(f"{row.set}/{row.metric}") for row in changes.itertuples()]
    for order, chosen in (
        (rise.abs(), changes["metric"] == ATTACK),
        (rise, changes["metric"] == REFUSAL),
        (-rise, skills),
    ):
        if not len(order[chosen]):
            continue
        row = changes.loc[order[chosen].idxmax()]
        if row["metric"] == ATTACK or row["before"] != row["after"]:
            yield _change(row)


def _change(row: Any) -> str:
    before, after = row["before"], row["after"]
    first, second = (f"{v:.1%}" if row["share"] else f"{v:.3f}" for v in (before, after))
    what = f"{row['from']} to {row['to']}: {row['metric']} on '{row['set']}'"
    if before == after:
        return f"{what} stays at {second}."
    text = f"{what} {'falls' if after < before else 'rises'} from {first} to {second}"
    if pd.notna(row["p"]):
        text += f" ({row['gained'] + row['lost']} of {row['pairs']} prompts changed, "
        text += f"{p_value(row['p'])}, exact McNemar test)"
        return text + ("." if row["p"] < _CHANCE else "; chance may explain that.")
    return f"{text}; the answers cannot be paired, so it is not tested."


def p_value(p: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _repairs(changes: pd.DataFrame) -> Iterator[str]:
    """Say how often a fall of the attack success rate leaves a prompt answered."""
    falls = changes[(changes["metric"] == ATTACK) & (changes["after"] < changes["before"])]
    for row in falls.dropna(subset="p").to_dict("records"):
        answered = row["kept"] + row["lost"]
        failed = rate(row["kept"], answered)
        yield (
            f"Of the {answered} prompts in '{row['set']}' that {row['from']} answers, {row['to']} "
            f"still answers {row['kept']}: {_rate(failed.value or 0.0, failed.low, failed.high)}; "
            f"it answers {row['gained']} that {row['from']} refused."
        )
