"""What lm-eval returns, read as scores: the values of tasks and groups, and the facts of each."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskScore:
    """One value of a task.

    Attributes:
        task: lm-eval's name of the task or group.
        metric: Its metric, with a filter behind a comma unless that is ``none``.
        value: The value.
        stderr: Its standard error, None where lm-eval has none.
    """

    task: str
    metric: str
    value: float
    stderr: float | None


def task_scores(results: Mapping[str, Any], tasks: Sequence[str]) -> list[TaskScore]:
    """Return the values of the tasks that were asked for.

    A group with values of its own, such as ``mmlu``, stands for its parts; one without, and a tag,
    is its parts.

    Args:
        results: What lm-eval returns.
        tasks: The names that were asked for.
    """
    values = {name: list(_values(name, entry)) for name, entry in _entries(results).items()}
    parts = {part for name in values if values[name] for part in _parts(name, results)}
    return [s for name in values if name in tasks or name not in parts for s in values[name]]


def unscored_metrics(results: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, list[str]]:
    """Return, for each task, the metrics whose value is no finite number, which no score can be.

    Args:
        results: What lm-eval returns.
        tasks: The names that were asked for.
    """
    entries = _entries(results)
    parts = {
        part for name in entries if any(_metrics(entries[name])) for part in _parts(name, results)
    }
    lost = {
        name: [metric for metric, _, value in _metrics(entry) if _not_finite(value)]
        for name, entry in entries.items()
        if name in tasks or name not in parts
    }
    return {name: metrics for name, metrics in lost.items() if metrics}


def _entries(results: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {**results["results"], **results.get("groups", {})}


def _metrics(entry: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Yield name, key of the standard error, and value of each metric."""
    for key, value in entry.items():
        metric, comma, kept = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            yield (metric if kept == "none" else key), f"{metric}_stderr,{kept}", value


def _values(task: str, entry: Mapping[str, Any]) -> Iterator[TaskScore]:
    for name, stderr, value in _metrics(entry):
        if _number(value):
            error: Any = entry.get(stderr)
            yield TaskScore(task, name, float(value), float(error) if _number(error) else None)


def _not_finite(value: Any) -> bool:
    # Written as JSON, NaN and the infinities have become None.
    return value is None or (isinstance(value, float) and not math.isfinite(value))


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _parts(group: str, results: Mapping[str, Any]) -> Iterator[str]:
    """Yield what a group is made of, at every depth."""
    for part in results.get("group_subtasks", {}).get(group, ()):
        yield part
        yield from _parts(part, results)


def task_facts(task: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task's version, number of examples and of questions; of a group those of its parts.

    Args:
        task: The task or group.
        results: What lm-eval returns.
    """
    counts = results.get("n-samples", {})
    asked = [name for name in dict.fromkeys([task, *_parts(task, results)]) if name in counts]
    shots = {results.get("n-shot", {}).get(name) for name in asked}
    return {
        "version": results.get("versions", {}).get(task),
        "num_fewshot": shots.pop() if len(shots) == 1 else None,
        "samples": sum(int(counts[name]["effective"]) for name in asked),
        "samples_of_task": sum(int(counts[name]["original"]) for name in asked),
        "higher_is_better": results.get("higher_is_better", {}).get(task),
    }
