"""Whether runs may stand side by side: the same prompts, decoding, phrases, judges and tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.metrics.registry import LM_EVAL
from oneshot_lit.report.runs import Run

_TASK_FACTS = ("version", "num_fewshot", "samples", "lm_eval_version")


def require_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose scores say nothing about each other.

    Raises:
        OneShotError: naming what differs, in which runs, and the ways out.
    """
    for key in ("decoding", "phrase_list"):
        _require_same(key, {run.name: run.content.get(key) for run in runs}, "test them alike")
    _require_same_prompts(runs)
    for judge in dict.fromkeys(name for run in runs for name in run.judges):
        versions = {run.name: run.judges.get(judge, {}).get("version") for run in runs}
        _require_same(f"the version of judge '{judge}'", versions, "judge them alike")
    evaluations = dict.fromkeys(name for run in runs for name in run.content["evaluations"])
    for task in (name for name in evaluations if name.startswith(f"{LM_EVAL}/")):
        facts = {run.name: _task_facts(run.content["evaluations"].get(task)) for run in runs}
        _require_same(task, facts, "measure them alike")


def _task_facts(facts: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if facts is None:
        return None
    settings = {k: v for k, v in facts.get("settings", {}).items() if not _of_speed(k)}
    return {key: facts.get(key) for key in _TASK_FACTS} | settings


def _of_speed(setting: str) -> bool:
    return setting in ("batch_size", "device", "model_args", "include_path")


def _require_same(what: str, values: Mapping[str, Any], mend: str) -> None:
    known = {name: value for name, value in values.items() if value is not None}
    for name, value in known.items():
        first = next(iter(known))
        if value != known[first]:
            raise OneShotError(
                f"runs '{first}' and '{name}': {what} differs ({_difference(known[first], value)}),"
                f" so their scores cannot be compared; {mend}, or leave one out."
            )


def _difference(a: Any, b: Any) -> str:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
        return ", ".join(f"{key}: {a.get(key)} and {b.get(key)}" for key in keys[:3])
    return f"{a} and {b}"


def _require_same_prompts(runs: Sequence[Run]) -> None:
    for name in dict.fromkeys(name for run in runs for name in run.samples):
        having = [run for run in runs if name in run.samples]
        counts = {run.name: run.samples[name] for run in having}
        _require_same(f"the number of prompts in '{name}'", counts, "test the same prompts")
        exact = [run for run in having if name in run.outcomes]
        for run in exact[1:]:
            mine, first = (
                Counter(r.digest for r in each.outcomes[name]) for each in (run, exact[0])
            )
            if missing := (first - mine).total():
                raise OneShotError(
                    f"runs '{exact[0].name}' and '{run.name}': {missing} of the prompts in "
                    f"'{name}' are not the same, so their scores cannot be compared; test the same "
                    "prompts, or leave one out."
                )
            kinds = {each.name: each.outcomes[name][0].kind for each in (exact[0], run)}
            _require_same(f"the kind of '{name}'", kinds, "test them alike")


def differences(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each setting that differs and may, such as the versions."""
    said = []
    for key in ("seed", "dtype", "precision", "versions"):
        known = {run.name: run.content[key] for run in runs if key in run.content}
        first = next(iter(known), None)
        for name, value in known.items():
            if first is not None and value != known[first]:
                what = _difference(known[first], value)
                said.append(f"{key} of {first} and {name} differ ({what}).")
    return said
