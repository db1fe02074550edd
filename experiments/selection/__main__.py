"""Compare the selectors of finished studies; see `README.md`.

python -m experiments.selection --study runs/selection_study [--beside runs/selection_seed1 ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from experiments.command import run_comparison
from experiments.selection.cases import compare_selectors
from experiments.selection.findings import findings, selector_tables
from experiments.selection.page import render_page
from experiments.selection.pictures import outcomes_by_category, selector_comparison
from experiments.selection.spec import load_spec
from experiments.selection.studies import read_studies
from oneshot_lit.io.files import write_json_atomically, write_text_atomically
from oneshot_lit.plots import save_figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    example = Path(__file__).with_name("comparison.yaml")
    return run_comparison("experiments.selection", __doc__, example, _compare, arguments)


def _compare(options: argparse.Namespace) -> None:
    spec = load_spec(options.comparison)
    studies = read_studies([options.study, *options.beside])
    compared = {"selections": compare_selectors(spec, studies[:1])}
    if len(studies) > 1:
        compared["all_seeds"] = compare_selectors(spec, studies)
    folder = options.study / "selections"
    write_json_atomically(folder / "comparison.json", compared)
    _save_pictures(compared, folder)
    page = folder / "report.html"
    write_text_atomically(page, render_page(compared, studies[0].results["provenance"]))
    out = Console(highlight=False)
    results = compared.get("all_seeds", compared["selections"])
    for table in selector_tables(results):
        out.print(table)
    for line in findings(results):
        out.print(Text(f"- {line}"))
    out.print(Text(f"\nresults: {folder / 'comparison.json'}\nreport:  {page}"))


def _save_pictures(compared: dict[str, Any], folder: Path) -> None:
    pictures = {"outcomes": outcomes_by_category(list(compared["selections"]["cases"].values()))}
    for key, name in (("selections", "selectors"), ("all_seeds", "all_seeds")):
        if key in compared:
            pictures[name] = selector_comparison(compared[key])
    for name, figure in pictures.items():
        save_figure(figure, folder / f"{name}.png")


if __name__ == "__main__":
    sys.exit(main())
