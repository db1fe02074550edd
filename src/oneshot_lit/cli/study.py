"""The command ``oneshot-lit study``."""

from __future__ import annotations

import shlex
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import fail
from oneshot_lit.io.files import write_json_atomically, write_text_atomically
from oneshot_lit.io.locking import run_locked

# More columns than these do not fit a terminal.
_MANY_STAGES = 6


def run_study_command(arguments: Sequence[str], run_command: Callable[[Sequence[str]], int]) -> int:
    """Run a study and write its results and report.

    Args:
        arguments: The command line after the verb.
        run_command: Runs a command line of a stage and returns its exit code.
    """
    parser = CommandParser(
        "study",
        "Run the stages of a study (fit, edit, select and test) and compare them. Writes "
        "<root>/results.json and <root>/report.html. Finished stages are kept unless their "
        "configs, inputs or code changed; a killed study resumes.",
        "--config configs/study/demo.yaml --seed 1 --root runs/demo_seed1",
    )
    parser.add_argument("--config", required=True, help="the study file, see configs/study/")
    parser.add_argument("--root", type=Path, help="output folder, instead of the file's")
    parser.add_argument("--seed", type=int, help="seed, instead of the file's")
    parser.add_argument("--fresh", action="store_true", help="run every stage again")
    parser.add_argument(
        "--commands",
        action="store_true",
        help="run nothing; print each stage's commands in order, for a cluster's scheduler",
    )
    options = parser.parse(arguments)
    if options is None:
        return 0
    try:
        return _run(options, run_command)
    except KeyboardInterrupt:
        without = " without --fresh" if options.fresh else ""
        return fail(f"interrupted; run the same command again{without} to resume.", code=130)


def _run(options: Namespace, run_command: Callable[[Sequence[str]], int]) -> int:
    from oneshot_lit.study.spec import load_study

    study = load_study(Path(options.config), options.root, options.seed)
    if options.commands:
        for stage in study.stages:
            for verb in stage.commands():
                print("oneshot-lit", shlex.join(study.arguments(stage, verb)))
        return 0
    console = Console(stderr=True, highlight=False)
    # Text shows a title such as "[v2]" as it is; a plain string would be read as markup.
    console.print(Text.assemble((study.title, "bold"), f" -> {study.root}"))

    from oneshot_lit.study.runner import Runner

    runner = Runner(study, console, options.fresh, run_command, ("oneshot_lit.cli.preload",))
    # Without the lock, stages that another study has begun would start again.
    with run_locked(study.root):
        runner.run()

    from oneshot_lit.study.repairs import sentences
    from oneshot_lit.study.report import findings, outside_sweeps, render_report, save_sweeps
    from oneshot_lit.study.results import RESULTS, gather

    results = gather(runner)
    report = study.root / "report.html"
    write_json_atomically(study.root / RESULTS, results)
    save_sweeps(results, study.sweeps, study.root)
    write_text_atomically(report, render_report(results, study.title, study.root, study.sweeps))
    out = Console(highlight=False)
    out.print(score_table(results["stages"]))
    repaired = sentences(results["repairs"])
    for line in repaired or findings(outside_sweeps(results["stages"], study.sweeps)):
        out.print(Text(f"- {line}"))
    out.print(Text(f"\nresults: {study.root / RESULTS}\nreport:  {report}"))
    return 0


def score_table(stages: Mapping[str, Any]) -> Table:
    """Return the scores as a table for the terminal: few stages are columns, many are rows."""
    from oneshot_lit.study.scores import columns

    scores = {key: [s["metrics"].get(key) for s in stages.values()] for key in columns(stages)}
    cells = {key: ["-" if v is None else f"{v:.3f}" for v in row] for key, row in scores.items()}
    table = Table(title="held-out prompts, shares", title_justify="left")
    if len(stages) <= _MANY_STAGES:
        table.add_column("metric")
        for name in stages:
            table.add_column(Text(name), justify="right")
        for key, row in cells.items():
            table.add_row(Text(key), *row)
        return table
    # Narrow enough for 80 columns: a number that is cut off would say nothing.
    table.box, table.padding = SIMPLE_HEAD, (0, 1, 0, 0)
    table.add_column("stage", no_wrap=True)
    for key in cells:
        heading = Text(key.replace("/", "\n").replace("_", " "), overflow="fold")
        table.add_column(heading, justify="right", min_width=5)
    for place, name in enumerate(stages):
        table.add_row(Text(name), *(row[place] for row in cells.values()))
    return table
