"""The command ``lm-eval``: general ability of a model, added to the ``metrics.json`` of a run."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.lm_eval import evaluate, task_facts, task_scores
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.metrics_file import merge_scores, read_metrics

RESULTS_FILE = "lm_eval.json"

_DESCRIPTION = """\
Measure general ability with lm-evaluation-harness, through its Python API, on a model folder or
PEFT adapter that a fit has written. The scores join <run>/metrics.json as lm_eval/<task>/<metric>,
and lm-eval's full results go to <run>/lm_eval.json. Options have the names of lm-eval's own
command, with - or _; the numbers are the same. Most tasks are fetched from the hub on first use.
"""
# Name, arguments for argparse, and help.
_OPTIONS: tuple[tuple[str, dict[str, Any], str], ...] = (
    ("run", {"required": True}, "folder of the run, which gets the scores"),
    ("tasks", {"required": True, "nargs": "+"}, "tasks, groups, tags or patterns"),
    ("model", {}, "folder or hub name to measure; <run>/model if not given"),
    ("include_path", {}, "folder with tasks of your own"),
    ("num_fewshot", {"type": int}, "worked examples; by default the task's own number"),
    ("limit", {"type": float}, "first N questions of each task, or a fraction of them"),
    ("batch_size", {"default": "1"}, "questions at once, or auto (default 1)"),
    ("dtype", {}, "dtype of the weights, such as bfloat16; by default that of the folder"),
    ("device", {}, "such as cuda:0 or cpu; by default the first GPU, else the CPU"),
    (
        "apply_chat_template",
        {"nargs": "?", "const": True, "default": False},
        "ask in the model's chat format, or in a template of this name",
    ),
    (
        "fewshot_as_multiturn",
        {"choices": ("true", "false"), "nargs": "?", "const": "true"},
        "worked examples as turns; true with the chat template",
    ),
    ("system_instruction", {}, "a system prompt"),
    ("gen_kwargs", {"nargs": "+", "default": []}, "generation settings, KEY=VALUE"),
    ("model_args", {"nargs": "+", "default": []}, "for lm-eval's hf model, KEY=VALUE"),
    ("seed", {"default": "0,1234,1234,1234"}, "one seed, or four: python,numpy,torch,fewshot"),
    ("use_cache", {}, "file in which lm-eval keeps a model's answers; one for each model"),
    ("log_samples", {"action": "store_true"}, "also keep every question and answer"),
    ("trust_remote_code", {"action": "store_true"}, "allow code of a hub repository to run"),
    ("confirm_run_unsafe_code", {"action": "store_true"}, "allow tasks that run generated code"),
)
_NO_SETTINGS = ("run", "tasks", "model")
# These decide no score.
_UNRECORDED = ("log_samples", "confirm_run_unsafe_code", "use_cache")


def run_lm_eval_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser("lm-eval", _DESCRIPTION, "--run runs/patched --tasks mmlu gsm8k")
    for name, how, text in _OPTIONS:
        spellings = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
        shown: dict[str, Any] = {} if {"action", "choices"} & how.keys() else {"metavar": "VALUE"}
        parser.add_argument(*spellings, help=text, **how, **shown)
    options = parser.parse(arguments)
    if options is None:
        return 0
    run = Path(options.run).expanduser()
    if not run.is_dir():
        raise OneShotError(f"{run}: no such folder; check --run.")
    tasks = [name for word in options.tasks for name in word.split(",") if name]
    model = options.model or str(run / "model")
    settings = _settings(vars(options))
    # Read now, so that a broken file is reported before anything is computed.
    earlier = _earlier(run / RESULTS_FILE)
    read_metrics(run)
    if (measured := evaluate(model, tasks, settings)) is None:
        return 0
    names, results = measured
    _merge(run, model, settings, names, results)
    everything = earlier | {",".join(names): results}
    # With --log_samples it holds the model's answers.
    private = any("samples" in each for each in everything.values())
    write_json_atomically(run / RESULTS_FILE, everything, private)
    print(f"scores added to {run / 'metrics.json'}, all results in {run / RESULTS_FILE}")
    return 0


def _settings(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options as `evaluate` takes them."""
    settings = {name: options[name] for name, _, _ in _OPTIONS if name not in _NO_SETTINGS}
    if (settings["num_fewshot"] or 0) < 0:
        raise OneShotError(f"--num_fewshot {settings['num_fewshot']}: must not be negative.")
    if (limit := settings["limit"]) is not None and not 0 < limit < float("inf"):
        raise OneShotError(f"--limit {limit:g}: must be above 0.")
    if (size := settings["batch_size"]).isdecimal() and int(size) > 0:
        settings["batch_size"] = int(size)
    elif size.split(":")[0] != "auto":
        raise OneShotError(f"--batch_size {size}: must be a whole number, auto or auto:N.")
    if (multiturn := settings["fewshot_as_multiturn"]) is not None:
        settings["fewshot_as_multiturn"] = multiturn == "true"
    settings["gen_kwargs"] = _pairs("--gen_kwargs", settings["gen_kwargs"])
    settings["model_args"] = _pairs("--model_args", settings["model_args"])
    seeds = (text := settings.pop("seed")).split(",")
    if len(seeds) not in (1, 4) or not all(seed.strip().isdecimal() for seed in seeds):
        raise OneShotError(f"--seed {text}: give one number, or four with commas.")
    return settings | {"seeds": [int(seed) for seed in (seeds * 4)[:4]]}


def _pairs(option: str, words: Sequence[str]) -> dict[str, Any]:
    # lm-eval would give a part without a value the empty one.
    for part in (parts := [part for word in words for part in word.split(",")]):
        if not part.partition("=")[0].strip() or "=" not in part:
            raise OneShotError(f"{option} {part}: must be KEY=VALUE; a value has no comma.")
    if not parts:
        return {}
    from lm_eval.utils import simple_parse_args_string

    return dict(simple_parse_args_string(",".join(parts)))


def _earlier(path: Path) -> dict[str, Any]:
    """Return the results of earlier commands, by their tasks."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise OneShotError(f"{path}: is not what this command writes; move it away.")
    return content


def _merge(
    run: Path, model: str, settings: dict[str, Any], names: list[str], results: dict[str, Any]
) -> None:
    """Add the scores to ``metrics.json`` and print them."""
    from oneshot_lit.callbacks.metrics_writer import package_versions
    from oneshot_lit.evaluation.metrics.registry import LM_EVAL

    scores = task_scores(results, names)
    if not any(value is not None for of in scores.values() for value, _ in of.values()):
        raise OneShotError(f"lm-eval gave no score that is a finite number for {', '.join(names)}.")
    shared = {
        "model_name_or_path": model,
        "lm_eval_version": importlib.metadata.version("lm_eval"),
        "settings": {key: of for key, of in settings.items() if key not in _UNRECORDED},
        "versions": package_versions(),
    }
    for task, of in scores.items():
        facts = task_facts(task, results)
        values = {metric: value for metric, (value, _) in of.items() if value is not None}
        facts["stderr"] = {metric: of[metric][1] for metric in values}
        facts["unscored"] = [metric for metric in of if metric not in values]
        # Each task is a separate evaluation, so that a later one replaces no other.
        keyed = {f"{LM_EVAL}/{task}/{metric}": value for metric, value in values.items()}
        merge_scores(run, f"{LM_EVAL}/{task}", keyed, facts | shared)
        for metric, (value, error) in of.items():
            shown = "no finite number" if value is None else f"{value:.4f}"
            spread = "" if error is None else f" ± {error:.4f}"
            print(f"{task} {metric}: {shown}{spread} ({facts['samples']} questions)")
