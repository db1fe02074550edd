"""The command ``lm-eval``: general ability of a product, added to its ``metrics.json``."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.lm_eval import SEEDS, LmEvalSettings, evaluate, require_lm_eval
from oneshot_lit.evaluation.lm_eval_results import (
    TaskScore,
    task_facts,
    task_scores,
    unscored_metrics,
)
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.metrics_file import merge_scores, read_metrics

RESULTS_FILE = "lm_eval.json"

_DESCRIPTION = """\
Measure general ability with lm-evaluation-harness, through its Python API, on a model folder or
PEFT adapter that a fit has written. The scores join <run>/metrics.json as lm_eval/<task>/<metric>,
and lm-eval's full results go to <run>/lm_eval.json. Options have the names of lm-eval's own
command, with - or _; the numbers are the same. Most tasks are fetched from the hub on first use.
"""


def run_lm_eval_command(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse(arguments)
    if options is None:
        return 0
    require_lm_eval()
    run = Path(options.run).expanduser()
    if not run.is_dir():
        raise OneShotError(f"{run}: no such folder; check --run.")
    model = options.model or str(run / "model")
    settings = _settings(options)
    # What cannot be added to is found before anything is computed.
    earlier = _earlier(run / RESULTS_FILE)
    read_metrics(run)
    if (found := evaluate(model, settings)) is None:
        return 0
    # With it comes torch, which lm-eval has loaded by now.
    from oneshot_lit.evaluation.metrics.registry import LM_EVAL

    tasks, results = found
    scores, unscored = task_scores(results, tasks), unscored_metrics(results, tasks)
    lost = [f"{LM_EVAL}/{task}/{metric}" for task in unscored for metric in unscored[task]]
    if not scores:
        why = f" ({', '.join(lost)}: no finite number)" if lost else ""
        raise OneShotError(f"lm-eval gave no score for {', '.join(tasks)}{why}.")
    everything = earlier | {",".join(tasks): results}
    # With --log_samples it holds the model's answers.
    private = any("samples" in each for each in everything.values())
    write_json_atomically(run / RESULTS_FILE, everything, private)
    _merge(run, model, settings, scores, unscored, results)
    _show(scores, results)
    if lost:
        print(f"no finite number, so no score: {', '.join(lost)}")
    print(f"scores added to {run / 'metrics.json'}, all results in {run / RESULTS_FILE}")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser("lm-eval", _DESCRIPTION, "--run runs/patched --tasks mmlu gsm8k")

    def add(name: str, **how: Any) -> None:
        # lm-eval spells its options with underscores.
        parser.add_argument(*dict.fromkeys([name, f"--{name[2:].replace('-', '_')}"]), **how)

    add("--run", required=True, metavar="FOLDER", help="folder of the run, which gets the scores")
    add("--tasks", required=True, nargs="+", metavar="TASK", help="tasks, groups, tags or patterns")
    add("--model", metavar="FOLDER", help="what to measure; <run>/model if not given")
    add("--include-path", metavar="FOLDER", help="folder with tasks of your own")
    add("--num-fewshot", type=int, metavar="K", help="worked examples; the task's own number")
    add("--limit", type=float, metavar="N", help="first N questions of each task, or a share")
    add("--batch-size", default="1", metavar="N", help="questions at once, or auto (1)")
    add("--dtype", help="of the weights, such as bfloat16; that of the folder if not given")
    add("--device", help="such as cuda:0 or cpu; the first GPU if there is one")
    add(
        "--apply-chat-template",
        nargs="?",
        const=True,
        default=False,
        metavar="NAME",
        help="ask in the model's chat format",
    )
    add(
        "--fewshot-as-multiturn",
        type=_yes_or_no,
        nargs="?",
        const=True,
        metavar="BOOL",
        help="worked examples as turns; true with the chat template",
    )
    add("--system-instruction", metavar="TEXT", help="a system prompt")
    add("--gen-kwargs", nargs="+", default=[], metavar="KEY=VALUE", help="generation settings")
    add("--model-args", nargs="+", default=[], metavar="KEY=VALUE", help="for lm-eval's hf model")
    add("--seed", default=",".join(map(str, SEEDS)), help="one, or python,numpy,torch,fewshot")
    add("--log-samples", action="store_true", help="also keep every question and answer")
    add("--trust-remote-code", action="store_true", help="allow code of a hub repository to run")
    add(
        "--confirm-run-unsafe-code",
        action="store_true",
        help="allow tasks that run generated code",
    )
    return parser


def _settings(options: argparse.Namespace) -> LmEvalSettings:
    names = [name for word in options.tasks for name in word.split(",") if name]
    if not names:
        raise OneShotError("--tasks: name at least one task.")
    return LmEvalSettings(
        tasks=names,
        include_path=options.include_path,
        num_fewshot=_num_fewshot(options.num_fewshot),
        limit=_limit(options.limit),
        batch_size=_batch_size(options.batch_size),
        dtype=options.dtype,
        device=options.device,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        system_instruction=options.system_instruction,
        gen_kwargs=_pairs("--gen-kwargs", options.gen_kwargs),
        model_args=_pairs("--model-args", options.model_args),
        seeds=_seeds(options.seed),
        log_samples=options.log_samples,
        trust_remote_code=options.trust_remote_code,
        confirm_run_unsafe_code=options.confirm_run_unsafe_code,
    )


def _yes_or_no(text: str) -> bool:
    if text.lower() not in ("true", "false", "yes", "no", "1", "0"):
        raise argparse.ArgumentTypeError("must be true or false")
    return text.lower() in ("true", "yes", "1")


def _num_fewshot(count: int | None) -> int | None:
    if count is not None and count < 0:
        raise OneShotError(f"--num-fewshot {count}: must not be negative.")
    return count


def _limit(limit: float | None) -> float | None:
    if limit is not None and not 0 < limit < float("inf"):
        raise OneShotError(f"--limit {limit:g}: must be above 0.")
    return limit


def _batch_size(text: str) -> int | str:
    if text.split(":")[0] == "auto":
        return text
    if not text.isdecimal() or int(text) == 0:
        raise OneShotError(f"--batch-size {text}: must be a whole number, auto or auto:N.")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if len(parts) not in (1, 4) or not all(part.strip().isdecimal() for part in parts):
        raise OneShotError(f"--seed {text}: give one number, or four with commas.")
    return tuple(int(part) for part in (parts if len(parts) == 4 else parts * 4))


def _pairs(option: str, words: Sequence[str]) -> dict[str, Any]:
    from lm_eval.utils import simple_parse_args_string

    # lm-eval parts pairs at commas and gives a part without a value the empty one.
    parts = [part for word in words for part in word.split(",")]
    for part in parts:
        if not part.partition("=")[0].strip() or "=" not in part:
            raise OneShotError(f"{option} {part}: must be KEY=VALUE; a value has no comma.")
    return dict(simple_parse_args_string(",".join(parts)))


def _earlier(path: Path) -> dict[str, Any]:
    """Return what earlier commands have left, by their tasks."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise OneShotError(f"{path}: is not what this command writes; move it away.")
    return content


def _merge(
    run: Path,
    model: str,
    settings: LmEvalSettings,
    scores: Sequence[TaskScore],
    unscored: Mapping[str, Sequence[str]],
    results: dict[str, Any],
) -> None:
    from oneshot_lit.callbacks.metrics_writer import package_versions
    from oneshot_lit.evaluation.metrics.registry import LM_EVAL

    shared = {
        "model_name_or_path": model,
        "lm_eval_version": importlib.metadata.version("lm_eval"),
        "settings": settings.as_dict(),
        "versions": package_versions(),
    }
    for task in dict.fromkeys([*(score.task for score in scores), *unscored]):
        mine = [score for score in scores if score.task == task]
        errors = {score.metric: score.stderr for score in mine}
        # Each task is an evaluation of its own, so that a later one replaces no other.
        merge_scores(
            run,
            f"{LM_EVAL}/{task}",
            {f"{LM_EVAL}/{task}/{score.metric}": score.value for score in mine},
            {
                **task_facts(task, results),
                "stderr": errors,
                "unscored": list(unscored.get(task, ())),
                **shared,
            },
        )


def _show(scores: Sequence[TaskScore], results: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("task", "examples", "questions", "metric", "value", "standard error")
    for score in scores:
        facts = task_facts(score.task, results)
        shots = "" if facts["num_fewshot"] is None else str(facts["num_fewshot"])
        error = "" if score.stderr is None else f"{score.stderr:.4f}"
        table.add_row(
            score.task, shots, str(facts["samples"]), score.metric, f"{score.value:.4f}", error
        )
    Console().print(table)
