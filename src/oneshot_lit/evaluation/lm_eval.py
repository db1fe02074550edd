"""General ability by lm-evaluation-harness: its Python API on a model folder or a PEFT adapter.

lm-eval is slow to import, so it is imported when it is needed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError, did_you_mean

# What libraries raise for settings of a model that do not fit; elsewhere these are defects.
_OF_MODELS = (RuntimeError, AssertionError, AttributeError, TypeError)


def evaluate(
    model: str,
    tasks: Sequence[str],
    settings: Mapping[str, Any],
    model_settings: Mapping[str, Any],
    include_path: str | None = None,
) -> tuple[list[str], dict[str, Any]] | None:
    """Run lm-eval as its own command does; return the tasks' names and its results.

    Args:
        model: A folder of safetensors, an adapter's folder, or a name of the hub.
        tasks: Names of tasks, groups or tags, or patterns of names.
        settings: Arguments of lm-eval's ``simple_evaluate``.
        model_settings: Arguments of lm-eval's ``hf`` model; ``model_args`` has more of them as
            lm-eval's own command takes them.
        include_path: Folder with tasks of your own.

    Returns:
        None in all but the first of several processes.

    Raises:
        OneShotError: for an unknown task or a model that cannot be loaded, and with lm-eval's own
            words for what it refuses.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable, simple_parse_args_string
    except ModuleNotFoundError as error:
        raise OneShotError(
            f'lm-eval: {error.name} is missing; pip install "oneshot-lit[lm-eval]".'
        ) from error
    own = {key: value for key, value in model_settings.items() if value is not None}
    more = simple_parse_args_string(own.pop("model_args", None))
    own |= {"use_safetensors": True, **_place(model)}
    manager = TaskManager(include_path=include_path, metadata=own)
    names = find_tasks(tasks, manager)
    with _refusals_named(*_OF_MODELS, RuntimeError):
        # HFLM takes a device that it does not know for none.
        import torch

        torch.empty(0, device=own.get("device") or "cpu")
        # A key that is given twice is refused.
        loaded = HFLM(**own, **more)
    with _refusals_named():
        results = simple_evaluate(model=loaded, tasks=names, task_manager=manager, **settings)
    if results is None:
        return None
    # As lm-eval writes them; NaN and the infinities become None.
    text = json.dumps(results, default=handle_non_serializable, ensure_ascii=False)
    return names, json.loads(text, parse_constant=lambda _: None)


def _place(model: str) -> dict[str, Any]:
    """Return lm-eval's arguments for a model: absolute, as runs/mine could be a name of the hub."""
    from oneshot_lit.models.adapters import base_of, is_adapter
    from oneshot_lit.models.loading import require_model_folder
    from oneshot_lit.models.weight_files import is_local

    def resolved(name: str) -> str:
        return str(require_model_folder(name).resolve()) if is_local(name) else name

    place = {"pretrained": resolved(model)}
    if is_local(model) and is_adapter(model):
        folder = Path(place["pretrained"])
        place = {"pretrained": resolved(base_of(folder)), "peft": str(folder)}
        if (folder / "tokenizer_config.json").is_file():
            place["tokenizer"] = str(folder)
    return place


@contextmanager
def _refusals_named(*more: type[Exception]) -> Iterator[None]:
    """Show what lm-eval and its libraries refuse, in their own words."""
    named: tuple[type[Exception], ...] = (OSError, ValueError, ImportError, *more)
    try:
        yield
    except named as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise OneShotError(f"lm-eval stopped: {said.rstrip('.')}.") from error


def find_tasks(names: Sequence[str], manager: Any) -> list[str]:
    """Return what lm-eval's task manager has for names or patterns, each once."""
    matches = {name: manager.match_tasks([name]) for name in names}
    for name in (name for name, tasks in matches.items() if not tasks):
        raise OneShotError(
            f"--tasks: lm-eval knows no task '{name}'{did_you_mean(name, manager.all_tasks)}; "
            "'lm-eval ls tasks' lists them; for your own give the name here and the folder as "
            "--include_path."
        )
    return list(dict.fromkeys(task for tasks in matches.values() for task in tasks))


def task_scores(
    results: Mapping[str, Any], asked: Sequence[str]
) -> dict[str, dict[str, tuple[float | None, float | None]]]:
    """Return task -> metric -> (value, standard error), None for what is not finite.

    A group with values of its own, such as ``mmlu``, is listed in place of its parts, unless these
    were asked for. For a tag, or a group without values, the parts are listed. The name of a metric
    has lm-eval's filter after a comma, unless that is ``none``.
    """
    entries = {**results["results"], **results.get("groups", {})}
    values = {task: dict(_values(entry)) for task, entry in entries.items()}
    parts = {part for task, of in values.items() if of for part in _parts(task, results)}
    return {t: of for t, of in values.items() if of and (t in asked or t not in parts)}


def _values(entry: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float | None, float | None]]]:
    for key, value in entry.items():
        metric, comma, kept = key.partition(",")
        if comma and type(value) in (int, float, type(None)) and not metric.endswith("_stderr"):
            error = entry.get(f"{metric}_stderr,{kept}")
            yield metric if kept == "none" else key, (_finite(value), _finite(error))


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


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
        "higher_is_better": results.get("higher_is_better", {}).get(task),
    }
