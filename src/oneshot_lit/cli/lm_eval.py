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
_Options = dict[str, tuple[dict[str, Any], str]]
_FLAG = {"action": "store_true"}
_OURS: _Options = {
    "run": ({"required": True}, "folder of the run, which gets the scores"),
    "tasks": ({"required": True, "nargs": "+"}, "tasks, groups, tags or patterns"),
    "model": ({}, "folder or hub name to measure; <run>/model if not given"),
    "include_path": ({}, "folder with tasks of your own"),
    "seed": ({"type": int}, "one seed for everything; by default lm-eval's own four"),
}
_OF_MODEL: _Options = {
    "batch_size": ({"default": "1"}, "questions at once, or auto (default 1)"),
    "dtype": ({}, "dtype of the weights, such as bfloat16; by default that of the folder"),
    "device": ({}, "such as cuda:0 or cpu; by default the first GPU, else the CPU"),
    "model_args": ({}, "more for lm-eval's hf model, KEY=VALUE,KEY=VALUE"),
    "trust_remote_code": (_FLAG, "allow code of a hub repository to run"),
}
_OF_LM_EVAL: _Options = {
    "num_fewshot": ({"type": int}, "worked examples; by default the task's own number"),
    "limit": ({"type": float}, "first N questions of each task, or a fraction of them"),
    "apply_chat_template": (
        {"nargs": "?", "const": True, "default": False},
        "ask in the model's chat format, or in a template of this name",
    ),
    "system_instruction": ({}, "a system prompt"),
    "gen_kwargs": ({}, "generation settings, KEY=VALUE,KEY=VALUE"),
    "use_cache": ({}, "file in which lm-eval keeps a model's answers; one for each model"),
    "log_samples": (_FLAG, "also keep every question and answer"),
    "confirm_run_unsafe_code": (_FLAG, "allow tasks that run generated code"),
}
# These decide no score.
_UNRECORDED = ("log_samples", "confirm_run_unsafe_code", "use_cache")
_SEEDS = ("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed")


def run_lm_eval_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = CommandParser("lm-eval", _DESCRIPTION, "--run runs/patched --tasks mmlu gsm8k")
    for name, (how, text) in (_OURS | _OF_MODEL | _OF_LM_EVAL).items():
        spellings = dict.fromkeys([f"--{name.replace('_', '-')}", f"--{name}"])
        shown: dict[str, Any] = {} if "action" in how else {"metavar": "VALUE"}
        parser.add_argument(*spellings, help=text, **how, **shown)
    options = parser.parse_args(arguments)
    run = Path(options.run).expanduser()
    if not run.is_dir():
        raise OneShotError(f"{run}: no such folder; check --run.")
    if options.limit is not None and not 0 < options.limit < float("inf"):
        raise OneShotError(f"--limit {options.limit:g}: must be above 0.")
    given = vars(options)
    of_model = {name: given[name] for name in _OF_MODEL}
    settings = {name: given[name] for name in _OF_LM_EVAL}
    # As lm-eval's own command does where nothing is given.
    settings["fewshot_as_multiturn"] = bool(options.apply_chat_template)
    settings |= {} if options.seed is None else dict.fromkeys(_SEEDS, options.seed)
    # Read now, so that a broken file is reported before anything is computed.
    read_metrics(run)
    model = options.model or str(run / "model")
    tasks = [name for word in options.tasks for name in word.split(",") if name]
    measured = evaluate(model, tasks, settings, of_model, options.include_path)
    if measured is None:
        return 0

    from oneshot_lit.models.gguf import gguf_facts

    names, results = measured
    recorded = {k: v for k, v in (of_model | settings).items() if k not in _UNRECORDED}
    of_run = {"model_name_or_path": model, **gguf_facts(model), "settings": recorded}
    _merge(run, of_run, names, results)
    file = run / RESULTS_FILE
    earlier = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    everything = earlier | {",".join(names): results}
    # With --log_samples it holds the model's answers.
    private = any("samples" in each for each in everything.values())
    write_json_atomically(file, everything, private)
    print(f"scores added to {run / 'metrics.json'}, all results in {file}")
    return 0


def _merge(run: Path, shared: dict[str, Any], names: list[str], results: dict[str, Any]) -> None:
    """Add the scores to ``metrics.json`` and print them."""
    from oneshot_lit.callbacks.metrics_writer import package_versions
    from oneshot_lit.evaluation.metrics.registry import LM_EVAL

    scores = task_scores(results, names)
    if not any(value is not None for of in scores.values() for value, _ in of.values()):
        raise OneShotError(f"lm-eval gave no score that is a finite number for {', '.join(names)}.")
    shared["lm_eval_version"] = importlib.metadata.version("lm_eval")
    shared["versions"] = package_versions()
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
