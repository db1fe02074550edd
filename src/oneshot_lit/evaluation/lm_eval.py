"""General ability by lm-evaluation-harness: its Python API on a model folder or a PEFT adapter.

lm-eval is slow to import, so it is imported when it is needed.
"""

from __future__ import annotations

import json
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError, did_you_mean

# These arguments of lm-eval's `hf` model follow from options, or guard against pickled weights.
_NOT_FOR_USERS = (
    *("pretrained", "peft", "trust_remote_code", "dtype", "device", "batch_size"),
    "use_safetensors",
)
# What libraries raise for settings of a model that do not fit; elsewhere these are defects.
_OF_MODELS = (RuntimeError, AssertionError, AttributeError, TypeError)


def model_arguments(model: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of lm-eval's ``hf`` model for a folder or a model of the hub.

    Args:
        model: A folder of safetensors, an adapter's folder, or a name of the hub.
        settings: With ``dtype``, ``trust_remote_code`` and ``model_args``.

    Raises:
        OneShotError: if it cannot be loaded, or an argument is not for the user to give.
    """
    from oneshot_lit.models.adapters import base_of, is_adapter
    from oneshot_lit.models.loading import require_model_folder, resolve_dtype
    from oneshot_lit.models.weight_files import is_local

    arguments: dict[str, Any] = {"pretrained": model, "use_safetensors": True}
    if is_local(model):
        # Absolute: a name such as runs/mine could be taken for one of the hub.
        folder = require_model_folder(model).resolve()
        arguments["pretrained"] = str(folder)
        if is_adapter(model):
            base = base_of(folder)
            if is_adapter(base):
                raise OneShotError(
                    f"{folder}: its base {base} is an adapter, too, which lm-eval cannot load; "
                    "write a merged model with --export.merge_adapter true."
                )
            if is_local(base):
                base = str(require_model_folder(base).resolve())
            arguments |= {"pretrained": base, "peft": str(folder)}
            if (folder / "tokenizer_config.json").is_file():
                arguments["tokenizer"] = str(folder)
    if (dtype := settings.get("dtype")) is not None:
        try:
            arguments["dtype"] = dtype if dtype == "auto" else str(resolve_dtype(dtype))[6:]
        except OneShotError as error:
            raise OneShotError(str(error).replace("model.dtype", "--dtype")) from error
    if settings.get("trust_remote_code"):
        arguments["trust_remote_code"] = True
    more = settings.get("model_args", {})
    for key in more:
        if key in _NOT_FOR_USERS:
            raise OneShotError(
                f"--model_args: '{key}' is not for you to set; it follows from --model and the "
                "other options, and weights are read from safetensors only."
            )
    return arguments | dict(more)


def find_tasks(names: Sequence[str], manager: Any) -> list[str]:
    """Return the tasks, groups and tags of these names or patterns, each once.

    Args:
        names: As given.
        manager: lm-eval's task manager.
    """
    tasks: dict[str, None] = {}
    for name in names:
        if not (matches := manager.match_tasks([name])):
            raise OneShotError(
                f"--tasks: lm-eval knows no task '{name}'{did_you_mean(name, manager.all_tasks)}; "
                "'lm-eval ls tasks' lists them; for your own give the name here and the folder as "
                "--include_path."
            )
        tasks |= dict.fromkeys(matches)
    return list(tasks)


def evaluate(
    model: str, tasks: Sequence[str], settings: Mapping[str, Any]
) -> tuple[list[str], dict[str, Any]] | None:
    """Run lm-eval as its own command does; return the tasks' names and its results.

    Args:
        model: As in `model_arguments`.
        tasks: Names of tasks, groups or tags, or patterns of names.
        settings: Arguments of lm-eval's ``simple_evaluate`` and of `model_arguments`,
            ``include_path`` and four ``seeds``: of Python, NumPy, torch and the worked examples.

    Returns:
        None in all but the first of several processes.

    Raises:
        OneShotError: for an unknown task or a model that cannot be loaded, and with lm-eval's own
            words for what it refuses.
    """
    try:
        import torch
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import handle_non_serializable
    except ModuleNotFoundError as error:
        raise OneShotError(
            f'lm-eval: {error.name} is missing; pip install "oneshot-lit[lm-eval]".'
        ) from error
    own = ("dtype", "trust_remote_code", "model_args", "include_path", "seeds", "device")
    passed = {key: value for key, value in settings.items() if key not in own}
    # As lm-eval's own command does where nothing is given.
    passed["gen_kwargs"] = dict(settings["gen_kwargs"]) or None
    if settings["fewshot_as_multiturn"] is None:
        passed["fewshot_as_multiturn"] = bool(settings["apply_chat_template"])
    kinds = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")
    folder = settings.get("include_path")
    if folder is not None and not Path(folder).is_dir():
        raise OneShotError(f"--include_path {folder}: no such folder.")
    arguments = model_arguments(model, settings)
    device = settings["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # lm-eval would replace a device that it does not know by another one.
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise OneShotError(f"--device {device}: this machine has no such device.") from error
    try:
        manager = TaskManager(include_path=folder, metadata=arguments)
        names = find_tasks(tasks, manager)
        results = simple_evaluate(
            model="hf",
            model_args=arguments,
            tasks=names,
            device=device,
            task_manager=manager,
            metadata=arguments,
            **passed,
            **dict(zip(kinds, settings["seeds"], strict=True)),
        )
    except (OSError, ValueError, ImportError, *_OF_MODELS) as error:
        steps = [frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__)]
        if isinstance(error, _OF_MODELS) and "create_from_arg_obj" not in steps:
            raise
        said = " ".join(str(error).split())[:300] or type(error).__name__
        raise OneShotError(f"lm-eval stopped: {said.rstrip('.')}.") from error
    if results is None:
        return None
    # As lm-eval writes them; NaN and the infinities become None.
    text = json.dumps(results, default=handle_non_serializable, ensure_ascii=False)
    return names, json.loads(text, parse_constant=lambda _: None)


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
        number = value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))
        if comma and number and not metric.endswith("_stderr"):
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
        "samples_of_task": sum(int(counts[name]["original"]) for name in asked),
        "higher_is_better": results.get("higher_is_better", {}).get(task),
    }
