"""The command ``oneshot-lit report``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError

# What tells that a folder belongs to a run or a study, whose own report must stay.
_OTHERS = ("metrics.json", "results.json", "run.json")


def run_report_command(arguments: Sequence[str]) -> int:
    """Compare runs and write the report."""
    parser = CommandParser(
        "report",
        "Compare finished runs: every score with its 95% interval, by category and by judge, the "
        "agreement between judges, and what changed from run to run. Reads metrics.json of each "
        "folder and, where they are there, outcomes.jsonl, judgments/, predictions.jsonl and "
        "realignment.csv. Writes report.html, report.md, report.json, table.csv, table.tex and "
        "pictures/. Runs on other prompts or with another decoding are refused.",
        "--runs before=runs/aligned attacked=runs/attacked patched=runs/patched --out runs/report",
    )
    parser.add_argument(
        "--runs",
        nargs="+",
        required=True,
        metavar="NAME=FOLDER",
        help="folders of runs in the order of their story; without NAME= the folder's own name",
    )
    parser.add_argument("--out", required=True, help="folder that takes the report")
    parser.add_argument("--title", default="Comparison of runs", help="heading of the report")
    parser.add_argument(
        "--show_outputs",
        action="store_true",
        help="show model outputs and harmful prompts in the examples; they may do harm",
    )
    parser.add_argument(
        "--examples", type=int, default=2, metavar="N", help="prompts to show of each set (2)"
    )
    options = parser.parse(arguments)
    if options is None:
        return 0
    if options.examples < 0:
        raise OneShotError(f"--examples {options.examples}: must be 0 or more.")
    return _run(options)


def named_folders(words: Sequence[str]) -> dict[str, Path]:
    """Return name -> folder of what ``--runs`` names.

    Raises:
        OneShotError: for an empty name or folder, and for two runs of one name.
    """
    from oneshot_lit.report.agreement import POOLED
    from oneshot_lit.report.text import visible

    found: dict[str, Path] = {}
    for word in words:
        name, mark, folder = word.partition("=")
        # A folder whose own name has a '=' is taken as it is if it is there.
        if not mark or Path(word).expanduser().is_dir():
            name, folder = Path(word).expanduser().resolve().name, word
        name = visible(name).strip()
        if not name or not folder:
            raise OneShotError(f"--runs '{visible(word)}': give NAME=FOLDER or a folder.")
        if name in found or name == POOLED:
            raise OneShotError(
                f"--runs: two runs are named '{name}'; name them apart with NAME=FOLDER."
            )
        found[name] = Path(folder).expanduser()
    return found


def _run(options: Namespace) -> int:
    folders = named_folders(options.runs)
    out = Path(options.out).expanduser()
    if out.exists() and not out.is_dir():
        raise OneShotError(f"{out}: --out is a file; give a folder.")
    for name in _OTHERS:
        if (out / name).exists():
            raise OneShotError(f"{out / name}: --out is the folder of a run; give another.")

    from oneshot_lit.report.content import report_content
    from oneshot_lit.report.runs import read_run

    runs = [read_run(name, folder) for name, folder in folders.items()]
    content = report_content(runs, options.title, out, options.examples, options.show_outputs)
    # What it then shows is for whoever asked for it.
    write_report(content, out, private=options.show_outputs)
    _show(content, out)
    return 0


def write_report(content: Mapping[str, Any], out: Path, private: bool = False) -> None:
    """Write all files of a report, each whole or not at all; the page comes last.

    Args:
        content: What `report_content` returned.
        out: The report's folder.
        private: Let only the owner read its texts.
    """
    from oneshot_lit.io.files import write_json_atomically, write_text_atomically
    from oneshot_lit.report.page import draw, remove_old_pictures, render_page, save_pictures
    from oneshot_lit.report.tables import render_csv, render_markdown, render_tex

    pictures = draw(content)
    texts = {
        "table.csv": render_csv(content),
        "table.tex": render_tex(content),
        "report.md": render_markdown(content, {k: p[:2] for k, p in pictures.items()}),
        "report.html": render_page(content, pictures),
    }
    save_pictures(pictures, out)
    write_json_atomically(out / "report.json", content, private)
    for name, text in texts.items():
        write_text_atomically(out / name, text, private)
    # Last, so that no text links to a picture that is gone.
    remove_old_pictures(pictures, out)


def _show(content: Mapping[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from oneshot_lit.report.cells import count, interval, value

    # Text shows a name such as "[v2]" as it is; a plain string would be read as markup.
    table = Table(title=Text(content["title"]), title_justify="left")
    table.add_column("score", overflow="fold")
    names = [run["name"] for run in content["runs"]]
    for name in names:
        table.add_column(Text(name), justify="right")
    for row in content["scores"]:
        found = (row["runs"][name] for name in names)
        texts = ("\n".join(filter(None, (value(c), interval(c), count(c)))) for c in found)
        table.add_row(Text("/\n".join(row["key"].rsplit("/", 1))), *map(Text, texts))
    console = Console(highlight=False)
    console.print(table)
    for line in (*content["findings"], *content["notes"]):
        console.print(Text(f"- {line}"))
    files = {"report": "report.html", "Markdown": "report.md", "numbers": "report.json"}
    files |= {"CSV": "table.csv", "LaTeX": "table.tex"}
    lines = "\n".join(f"{what + ':':<10}{out / file}" for what, file in files.items())
    console.print(Text(f"\n{lines}"), soft_wrap=True)
