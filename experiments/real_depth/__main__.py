"""Compare the repairs of finished depth studies; see `README.md`.

python -m experiments.real_depth --study runs/real_depth_seed0 [--beside runs/real_depth_seed1 ...]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from experiments.command import run_comparison
from experiments.real_depth.comparison import compare
from experiments.real_depth.findings import findings, reach_table
from experiments.real_depth.measures import measures_of
from experiments.real_depth.page import render_page
from experiments.real_depth.pictures import frontier_by_depth, predictors_picture
from experiments.real_depth.spec import load_spec
from experiments.selection.studies import read_studies
from oneshot_lit.io.files import write_json_atomically, write_text_atomically
from oneshot_lit.plots import save_figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    example = Path(__file__).with_name("depth.yaml")
    return run_comparison("experiments.real_depth", __doc__, example, _compare, arguments)


def _compare(options: argparse.Namespace) -> None:
    spec = load_spec(options.comparison)
    studies = read_studies([options.study, *options.beside])
    console = Console(stderr=True, highlight=False)
    measures = {
        study.seed: {
            case: measures_of(
                study.root / case, spec, study.seed, lambda text: console.print(Text(text))
            )
            for case in spec.cases
        }
        for study in studies
    }
    results = compare(spec, studies, measures)
    folder = options.study / "depth"
    write_json_atomically(folder / "comparison.json", results)
    save_figure(frontier_by_depth(results), folder / "frontier.png")
    save_figure(predictors_picture(results), folder / "predictors.png")
    page = folder / "report.html"
    write_text_atomically(page, render_page(results, studies[0].results["provenance"]))
    out = Console(highlight=False)
    out.print(reach_table(results))
    for line in findings(results):
        out.print(Text(f"- {line}"))
    out.print(Text(f"\nresults: {folder / 'comparison.json'}\nreport:  {page}"))


if __name__ == "__main__":
    sys.exit(main())
