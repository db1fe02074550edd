"""The command ``oneshot-lit study``."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.cli.report import terminal_table
from oneshot_lit.errors import fail
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.locking import run_locked

_LLAMA = "transformers.models.llama.modeling_llama"
# Imported once for all commands of a study.
_PRELOAD = ("oneshot_lit.cli.fit", "oneshot_lit.microworld.splits", _LLAMA)


def run_study_command(arguments: Sequence[str], run_command: Callable[[Sequence[str]], int]) -> int:
    """Run a study and write its results and report.

    Args:
        arguments: The command line after the verb.
        run_command: Runs a command line of a stage and returns its exit code.
    """
    parser = CommandParser(
        "study",
        "Run the stages of a study (fit, edit, select and test) and compare them. Writes "
        "<root>/results.json and the files of oneshot-lit report, such as <root>/report.html. "
        "Finished stages are kept unless their configs, inputs or code changed; a killed study "
        "resumes.",
        "--config configs/study/demo.yaml --seed 1 --root runs/demo_seed1",
    )
    parser.add_argument("--config", required=True, help="the study file, see configs/study/")
    parser.add_argument("--root", type=Path, help="output folder, instead of the file's")
    parser.add_argument("--seed", type=int, help="seed, instead of the file's")
    parser.add_argument("--fresh", action="store_true", help="run every stage again")
    parser.add_argument(
        "--any_version",
        action="store_true",
        help="keep finished stages although the version of oneshot-lit or of another package "
        "changed; results.json names them",
    )
    parser.add_argument(
        "--commands",
        action="store_true",
        help="run nothing; print each stage's commands in order, for a cluster's scheduler",
    )
    options = parser.parse_args(arguments)
    if options.fresh and options.any_version:
        return fail("--fresh runs every stage again, and --any_version keeps them; drop one.")
    try:
        return _run(options, run_command)
    except KeyboardInterrupt:
        without = " without --fresh" if options.fresh else ""
        return fail(f"interrupted; run the same command again{without} to resume.", code=130)


def _run(options: Namespace, run_command: Callable[[Sequence[str]], int]) -> int:
    from oneshot_lit.study.worker import start_server

    # It imports for the stages while this process imports for itself.
    context = None if options.commands else start_server(_PRELOAD)

    from oneshot_lit.study.spec import load_study

    study = load_study(Path(options.config), options.root, options.seed)
    if options.commands:
        for stage in study.stages:
            for verb in stage.commands:
                print("oneshot-lit", shlex.join(study.arguments(stage, verb)))
        return 0
    console = Console(stderr=True, highlight=False)
    # Text shows a title such as "[v2]" as it is; a plain string would be read as markup.
    console.print(Text.assemble((study.title, "bold"), f" -> {study.root}"))

    from oneshot_lit.study.runner import Runner

    runner = Runner(study, console, context, options.fresh, run_command, options.any_version)
    # Without the lock, stages that another study has begun would start again.
    with run_locked(study.root):
        runner.run()

    from oneshot_lit.report.page import write_report
    from oneshot_lit.report.tables import number, shown_scores
    from oneshot_lit.study.results import RESULTS, compare_stages

    out = Console(highlight=False)
    report, results = compare_stages(study, runner.seconds)
    results["provenance"]["other_version"] = runner.other_version
    write_json_atomically(study.root / RESULTS, results)
    write_report(report, study.root)
    scores = shown_scores(report, lambda row: number(row.value), keys=("set", "metric"))
    out.print(terminal_table(scores, "held-out prompts, shares"))
    lines = [line for section in report.sections for line in section.lines]
    # Repairs say what the findings say, and more shortly.
    for line in lines if study.repairs else [*report.findings, *lines]:
        out.print(Text(f"- {line}"))
    out.print(Text(f"\nresults: {study.root / RESULTS}\nreport:  {study.root / 'report.html'}"))
    return 0
