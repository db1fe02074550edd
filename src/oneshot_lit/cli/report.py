"""The command ``oneshot-lit report``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError

if TYPE_CHECKING:
    from oneshot_lit.report.content import Report

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
    options = parser.parse(arguments)
    if options is None:
        return 0
    if options.examples < 0:
        raise OneShotError(f"--examples {options.examples}: must be 0 or more.")
    return _run(options)


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Return name -> folder of the runs in ``--runs``.

    Raises:
        OneShotError: for an empty name or folder, a reserved name, and two runs of one name.
    """
    from oneshot_lit.report.agreement import POOLED
    from oneshot_lit.report.tables import HEADINGS
    from oneshot_lit.report.text import visible

    folders: dict[str, Path] = {}
    for word in words:
        name, mark, folder = word.partition("=")
        # A word with a '=' may also be the name of an existing folder.
        if not mark or Path(word).expanduser().is_dir():
            name, folder = Path(word).expanduser().resolve().name, word
        name = visible(name).strip()
        if not name or not folder:
            raise OneShotError(f"--runs '{visible(word)}': give NAME=FOLDER or a folder.")
        if name in folders:
            raise OneShotError(f"--runs: two runs are named '{name}'; give NAME=FOLDER.")
        if name in (POOLED, *HEADINGS):
            raise OneShotError(
                f"--runs: '{name}' is a heading of the report; give the run another name."
            )
        folders[name] = Path(folder).expanduser()
    return folders


def _run(options: Namespace) -> int:
    folders = named_folders(options.runs)
    out = Path(options.out).expanduser()
    if out.exists() and not out.is_dir():
        raise OneShotError(f"{out}: --out is a file; give a folder.")
    for name in _OTHERS:
        if (out / name).exists():
            raise OneShotError(f"{out / name}: --out is the folder of a run; give another.")

    from oneshot_lit.report.content import build_report
    from oneshot_lit.report.runs import read_run

    runs = [read_run(name, folder) for name, folder in folders.items()]
    report = build_report(
        runs,
        options.title,
        out,
        options.examples,
        options.show_outputs,
        options.allow_differences,
    )
    write_report(report, out)
    _show(report, out)
    return 0


def write_report(report: Report, out: Path) -> None:
    """Write all files of a report, each whole or not at all; the page comes last.

    Where outputs are shown, only the owner may read them.
    """
    from oneshot_lit.io.files import write_json_atomically, write_text_atomically
    from oneshot_lit.report.page import render_markdown, render_page, write_pictures
    from oneshot_lit.report.tables import render_csv, render_tex

    pictures = write_pictures(report, out)
    write_json_atomically(out / "report.json", report.as_json(), report.outputs_shown)
    for name, text in {
        "table.csv": render_csv(report),
        "table.tex": render_tex(report),
        "report.md": render_markdown(report, pictures),
        "report.html": render_page(report, pictures, out),
    }.items():
        write_text_atomically(out / name, text, report.outputs_shown)


def _show(report: Report, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from oneshot_lit.report.cells import score
    from oneshot_lit.report.tables import wide

    # Text shows a name such as "[v2]" as it is; a plain string would be read as markup.
    table = Table(title=Text(report.title), title_justify="left")
    table.add_column("score", overflow="fold")
    for name in report.names:
        table.add_column(Text(name), justify="right")
    scores = wide(report.scores, ["set", "metric"], report.names, lambda row: score(row, "\n"))
    for name_of_set, metric, *texts in scores.values:
        table.add_row(*map(Text, [f"{name_of_set}/\n{metric}", *texts]))
    console = Console(highlight=False)
    console.print(table)
    for line in (*report.findings, *report.notes):
        console.print(Text(f"- {line}"))
    files = {"report": "report.html", "Markdown": "report.md", "numbers": "report.json"}
    files |= {"CSV": "table.csv", "LaTeX": "table.tex"}
    lines = "\n".join(f"{what + ':':<10}{out / file}" for what, file in files.items())
    console.print(Text(f"\n{lines}"), soft_wrap=True)
