"""Checks that runs can be compared: same prompts, decoding, phrases, judges and tasks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.registry import ABILITY, LM_EVAL
from oneshot_lit.report.runs import TEST, Run

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
    serious = list(_differences(runs, _must_be_equal))
    if serious and not anyway:
        raise OneShotError(
            f"{serious[0]}, so their scores cannot be compared; make them alike, leave one out, or "
            "compare them anyway with --allow_differences."
        )
    return [f"{sentence}." for sentence in (*serious, *_differences(runs, _may_differ))]


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
    prompts = run.scores.drop_duplicates(["by", "set", "place"]).dropna(subset="prompt")
    for (by, name), of in prompts.groupby(["by", "set"], sort=False)["prompt"]:
        judged = "" if by == TEST else f" that judge '{by}' judged"
        digest = hashlib.sha256("".join(sorted(of)).encode()).hexdigest()[:8]
        facts[f"the digest of the prompts in '{name}'{judged}"] = digest
    for task, said in run.content["evaluations"].items():
        if task.startswith(f"{LM_EVAL}/"):
            settings = said.get("settings", {}).items()
            facts[task] = {key: said.get(key) for key in _OF_TASKS}
            facts[task] |= {k: v for k, v in settings if k not in _SPEED_OF_TASKS}
        elif task == ABILITY:
            compared = {key: said.get(key) for key in ("version", "tokens")}
            facts["general ability"] = compared | said.get("settings", {})
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
