"""Whether runs may stand side by side: the same prompts, decoding, phrases, judges and tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.registry import LM_EVAL
from oneshot_lit.report.rows import Scored
from oneshot_lit.report.runs import Run
from oneshot_lit.report.settings import deciding

_TASK_FACTS = ("version", "num_fewshot", "samples", "lm_eval_version")


def require_comparable(runs: Sequence[Run]) -> None:
    """Refuse runs whose scores say nothing about each other.

    Raises:
        OneShotError: naming what differs, in which runs, and the ways out.
    """
    decodings = {run.name: deciding(run.content.get("decoding")) for run in runs}
    _require_same("decoding", decodings, "test them alike")
    phrases = {run.name: run.content.get("phrase_list") for run in runs}
    _require_same("phrase_list", phrases, "test them alike")
    _require_same_prompts(runs)
    for judge in dict.fromkeys(name for run in runs for name in run.judges):
        versions = {run.name: run.judges.get(judge, {}).get("version") for run in runs}
        _require_same(f"the version of judge '{judge}'", versions, "judge them alike")
        _require_same_judged(runs, judge)
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
        exact = {run.name: run.outcomes[name] for run in having if name in run.outcomes}
        _require_same_digests(exact, f"'{name}'", "test the same prompts")
        kinds = {run: rows[0].kind for run, rows in exact.items()}
        _require_same(f"the kind of '{name}'", kinds, "test them alike")


def _require_same_judged(runs: Sequence[Run], judge: str) -> None:
    """Refuse runs of which a judge judged other prompts: its sets may be others than the test's."""
    having = [run for run in runs if judge in run.judges]
    counted = {run.name: run.judges[judge].get("samples", {}) for run in having}
    for name in dict.fromkeys(name for of in counted.values() for name in of):
        what = f"'{name}' that judge '{judge}' judged"
        counts = {run: of.get(name) for run, of in counted.items()}
        _require_same(f"the number of prompts in {what}", counts, "judge the same prompts")
        judged = {run.name: run.judgments.get(judge, {}).get(name, []) for run in having}
        # Older judgments do not say which prompts they are on.
        known = {r: rows for r, rows in judged.items() if rows and all(x.prompt for x in rows)}
        _require_same_digests(known, what, "judge the same prompts")


def _require_same_digests(rows: Mapping[str, Sequence[Scored]], where: str, mend: str) -> None:
    counted = {run: Counter(row.prompt for row in of) for run, of in rows.items()}
    first = next(iter(counted), "")
    for run, prompts in counted.items():
        if missing := (counted[first] - prompts).total():
            raise OneShotError(
                f"runs '{first}' and '{run}': {missing} of the prompts in {where} are not the "
                f"same, so their scores cannot be compared; {mend}, or leave one out."
            )


def differences(runs: Sequence[Run]) -> list[str]:
    """Return a sentence for each setting that differs and may, such as the versions."""
    said = []
    for key in ("seed", "dtype", "precision", "versions"):
        known = {run.name: run.content[key] for run in runs if key in run.content}
        said += _differing(key, known)
    decodings = {run.name: run.content["decoding"] for run in runs if run.content.get("decoding")}
    backends = {
        name: {key: decoding.get(key) for key in ("backend", "vllm")}
        for name, decoding in decodings.items()
        if "backend" in decoding
    }
    said += _differing("decoding", backends)
    if len(runs) > 1:
        for key in ("decoding", "phrase_list"):
            said += [
                f"{run.name}: metrics.json does not say its {key}, so whether it is that of the "
                "other runs is not checked."
                for run in runs
                if run.content.get(key) is None
            ]
    return said


def _differing(key: str, known: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each run whose setting is not that of the first."""
    first = next(iter(known), "")
    return [
        f"{key} of {first} and {name} differ ({_difference(known[first], value)})."
        for name, value in known.items()
        if value != known[first]
    ]
