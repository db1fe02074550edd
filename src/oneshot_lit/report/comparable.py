"""Checks that runs can be compared: same prompts, decoding, phrases, judges and tasks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.registry import LM_EVAL
from oneshot_lit.report.rows import TEST
from oneshot_lit.report.runs import Run

_OF_SPEED = ("backend", "vllm")
_OF_SAMPLING = ("temperature", "top_p")
_OF_TASKS = ("version", "num_fewshot", "samples", "lm_eval_version")
_SPEED_OF_TASKS = ("batch_size", "device", "model_args", "include_path")


def require_comparable(runs: Sequence[Run], anyway: bool = False) -> list[str]:
    """Refuse runs with scores that cannot be compared; return the differences that are allowed.

    Args:
        runs: The runs.
        anyway: Return the other differences as well, instead of refusing them.

    Raises:
        OneShotError: naming what differs and in which runs.
    """
    serious = [*_differences(runs, _must_be_equal), *_other_prompts(runs)]
    if serious and not anyway:
        raise OneShotError(
            f"{serious[0]}, so their scores cannot be compared; make them alike, leave one out, or "
            "compare them anyway with --allow_differences."
        )
    harmless = [*_differences(runs, _may_differ), *_unknown(runs)]
    return [f"{sentence}." for sentence in (*serious, *harmless)]


def _must_be_equal(run: Run) -> dict[str, Any]:
    decoding = run.content.get("decoding") or {}
    # All backends give the same greedy answers in float32, and those need no temperature.
    ignored = _OF_SPEED if decoding.get("do_sample") else (*_OF_SPEED, *_OF_SAMPLING)
    facts: dict[str, Any] = {
        "decoding": {k: v for k, v in decoding.items() if k not in ignored} or None,
        "phrase_list": run.content.get("phrase_list"),
    }
    for name, number in run.samples.items():
        facts[f"the number of prompts in '{name}'"] = number
    for judge, said in run.judges.items():
        facts[f"the version of judge '{judge}'"] = said.get("version")
        for name, number in said.get("samples", {}).items():
            facts[f"the number of prompts in '{name}' that judge '{judge}' judged"] = number
    for task, said in run.content["evaluations"].items():
        if task.startswith(f"{LM_EVAL}/"):
            settings = {
                k: v for k, v in said.get("settings", {}).items() if k not in _SPEED_OF_TASKS
            }
            facts[task] = {key: said.get(key) for key in _OF_TASKS} | settings
    return facts


def _may_differ(run: Run) -> dict[str, Any]:
    facts = {key: run.content.get(key) for key in ("seed", "dtype", "precision", "versions")}
    decoding = run.content.get("decoding") or {}
    return facts | {f"decoding.{key}": decoding.get(key) for key in _OF_SPEED}


def _differences(runs: Sequence[Run], facts_of: Any) -> Iterator[str]:
    """Yield a sentence for each fact that differs from that of the first run that has it."""
    first: dict[str, tuple[str, Any]] = {}
    for run in runs:
        for what, value in facts_of(run).items():
            if value is None:
                continue
            name, before = first.setdefault(what, (run.name, value))
            if before != value:
                yield f"runs '{name}' and '{run.name}': {what} differs ({_shown(before, value)})"


def _shown(a: Any, b: Any) -> str:
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return f"{a} and {b}"
    keys = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
    return ", ".join(f"{key}: {a.get(key)} and {b.get(key)}" for key in keys[:3])


def _other_prompts(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a sentence for each set with other prompts than in the first run that has it."""
    first: dict[tuple[str, str], tuple[str, Counter[str]]] = {}
    for run in runs:
        prompts = run.scores.drop_duplicates(["by", "set", "place"]).dropna(subset="prompt")
        for (by, name), of in prompts.groupby(["by", "set"], sort=False)["prompt"]:
            other, before = first.setdefault((by, name), (run.name, Counter(of)))
            if missing := (before - Counter(of)).total():
                judged = "" if by == TEST else f" that judge '{by}' judged"
                yield (
                    f"runs '{other}' and '{run.name}': {missing} of the prompts in '{name}'{judged}"
                    " are not the same"
                )


def _unknown(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs if len(runs) > 1 else ():
        for key in ("decoding", "phrase_list"):
            if run.content.get(key) is None:
                yield (
                    f"{run.name}: metrics.json does not say its {key}, so whether it is that of "
                    "the other runs is not checked"
                )
