"""The command ``oneshot-lit report``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError

if TYPE_CHECKING:
    import pandas as pd

# A folder with one of these files belongs to a run or a study; its report is not overwritten.
_OTHERS = ("metrics.json", "results.json", "run.json")


def run_report_command(arguments: Sequence[str]) -> int:
    """Compare runs and write the report."""
    parser = CommandParser(
        "report",
        "Compare finished runs: every score with its 95% interval, by category and by judge, the "
        "agreement between judges, and what changed from run to run. Reads metrics.json of each "
        "folder and, if they exist, outcomes.jsonl, judgments/, predictions.jsonl and "
        "realignment.png. Writes report.html, report.md, report.json, table.csv, table.tex and "
        "pictures/. Runs with other prompts or decoding are refused unless you allow it.",
        "--runs before=runs/aligned attacked=runs/attacked patched=runs/patched --out runs/report",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        required=True,
        metavar="NAME=FOLDER",
        help="folders of runs, in order of time; without NAME= the name of the folder",
    )
    parser.add_argument("--out", required=True, help="folder to write the report to")
    parser.add_argument("--title", default="Comparison of runs", help="heading of the report")
    parser.add_argument(
        "--show_outputs",
        action="store_true",
        help="show model outputs and harmful prompts in the examples; they may do harm",
    )
    parser.add_argument(
        "--examples", type=int, default=2, metavar="N", help="prompts to show from each set (2)"
    )
    parser.add_argument(
        "--allow_differences",
        action="store_true",
        help="compare runs with other prompts or settings as well; the notes name what differs",
    )
    options = parser.parse_args(arguments)
    if options.examples < 0:
        raise OneShotError(f"--examples {options.examples}: must be 0 or more.")
    return _run(options)


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Return name -> folder of the runs in ``--runs``.

    Raises:
        OneShotError: for an empty name or folder, and two runs of one name.
    """
    from oneshot_lit.report.agreement import POOLED
    from oneshot_lit.report.text import visible

    folders: dict[str, Path] = {}
    for word in words:
        name, mark, folder = word.partition("=")
        if not mark or Path(word).expanduser().is_dir():
            name, mark, folder = "", "", word
        path = Path(folder).expanduser()
        name = visible(name if mark else path.resolve().name).strip()
        if not name or not folder:
            raise OneShotError(f"--runs '{visible(word)}': give NAME=FOLDER or a folder.")
        if name == POOLED:
            raise OneShotError(f"--runs: '{name}' is a row of the tables; give another name.")
        if name in folders:
            raise OneShotError(f"--runs: two runs are named '{name}'; give NAME=FOLDER.")
        folders[name] = path
    return folders


def _run(options: Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    folders = named_folders(options.runs)
    out = Path(options.out).expanduser()
    for name in _OTHERS:
        if (out / name).exists():
            raise OneShotError(f"{out / name}: --out is the folder of a run; give another.")

    from oneshot_lit.report.content import build_report
    from oneshot_lit.report.page import write_report
    from oneshot_lit.report.runs import read_run
    from oneshot_lit.report.tables import score, shown_scores

    report = build_report(
        [read_run(name, folder) for name, folder in folders.items()],
        options.title,
        options.examples,
        options.show_outputs,
        options.allow_differences,
    )
    write_report(report, out)
    console = Console(highlight=False)
    scores = shown_scores(report, lambda row: score(row, "\n"), keys=("set", "metric"))
    console.print(terminal_table(scores, report.title))
    for line in (*report.findings, *report.notes):
        console.print(Text(f"- {line}"))
    files = "report.html", "report.md", "report.json", "table.csv", "table.tex"
    console.print(Text("\n" + "\n".join(str(out / file) for file in files)), soft_wrap=True)
    return 0


def terminal_table(frame: pd.DataFrame, title: str) -> Any:
    """Return a table of texts for the terminal; its index names the rows."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    # Text shows a name such as "[v2]" as it is; a plain string would be read as markup.
    table = Table(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(Text("/".join(frame.index.names)), no_wrap=True)
    for name in frame.columns:
        # The name of a score is long, that of a run is not.
        heading = name.replace("/", "\n").replace("_", " ") if "/" in name else name
        table.add_column(Text(heading, overflow="fold"), justify="right", min_width=5)
    for key, texts in zip(frame.index, frame.values, strict=True):
        label = key if isinstance(key, str) else "/".join(key)
        table.add_row(*map(Text, [label, *texts]))
    return table
