"""One study at several seeds: the scores of each stage over all of them, as a Markdown table.

    python -m experiments.over_seeds runs/real_seed0 runs/real_seed1 runs/real_seed2

The first table has the mean over the seeds, with Wilson's interval over the answers of all seeds
where a score counts answers. The prompts are the same at every seed, so an interval speaks of new
prompts and not of new seeds; the second table has each seed's own scores.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.selection.studies import FinishedStudy, read_studies
from oneshot_lit.errors import OneShotError, fail
from oneshot_lit.evaluation.intervals import rate
from oneshot_lit.evaluation.metrics.registry import is_rate
from oneshot_lit.plots import rates_with_intervals, run_colours, save_figure

# Metrics that say what another one says already.
LEFT_OUT = ("asr_keyword_prefix", "harmful_correct", "bits_per_byte")


def pooled_scores(studies: Sequence[FinishedStudy]) -> pd.DataFrame:
    """Return a line for each stage (``run``) and score (``row``).

    Further columns: ``value``, ``low`` and ``high``; ``n``, the answers of all seeds, 0 for a score
    that does not count answers; ``seeds``, the list of each seed's own scores.

    Raises:
        OneShotError: if a study lacks a stage or a score of the first.
    """
    rows = []
    for name, entry in studies[0].results["stages"].items():
        for key in entry["metrics"]:
            prompts, _, metric = key.rpartition("/")
            # That a harmless answer is one of many right ones says little beside over-refusal.
            other = metric == "exact_match" and f"{prompts}/over_refusal" in entry["metrics"]
            if metric in LEFT_OUT or other or entry["metrics"][key] is None:
                continue
            entries = [study.stage(name) for study in studies]
            rows.append({"run": name, "row": key} | _pooled(key, entries, studies, name))
    return pd.DataFrame(rows)


def _pooled(
    key: str, entries: Sequence[Any], studies: Sequence[FinishedStudy], stage: str
) -> dict[str, Any]:
    for study, entry in zip(studies, entries, strict=True):
        if entry["metrics"].get(key) is None:
            raise OneShotError(f"{study.root}: stage {stage} has no score {key}; run it again.")
    seeds = [float(entry["metrics"][key]) for entry in entries]
    if not is_rate(key):
        mean = math.fsum(seeds) / len(seeds)
        return {"value": mean, "low": math.nan, "high": math.nan, "n": 0, "seeds": seeds}
    counts = [int(entry["samples"][key.rpartition("/")[0]]) for entry in entries]
    hits = [round(value * n) for value, n in zip(seeds, counts, strict=True)]
    estimate = rate(sum(hits), sum(counts))
    own = {name: getattr(estimate, name) for name in ("value", "low", "high", "n")}
    return own | {"seeds": seeds}


def markdown(scores: pd.DataFrame) -> str:
    """Return two tables, a line for each stage: over all seeds, and seed by seed."""
    return _table(scores, _over_seeds) + "\n\nSeed by seed:\n\n" + _table(scores, _by_seed)


def _table(scores: pd.DataFrame, cell: Callable[[Any], str]) -> str:
    columns = list(dict.fromkeys(scores["row"]))
    cells = {(row.run, row.row): cell(row) for row in scores.itertuples()}
    lines = ["| stage | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for run in dict.fromkeys(scores["run"]):
        shown = [cells.get((run, column), "-") for column in columns]
        lines.append("| " + " | ".join([run, *shown]) + " |")
    return "\n".join(lines)


def _over_seeds(row: Any) -> str:
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]" if row.n else f"{row.value:.2f}"


def _by_seed(row: Any) -> str:
    return ", ".join(f"{value:.{3 if row.n else 2}f}" for value in row.seeds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.over_seeds", description=__doc__)
    parser.add_argument("studies", type=Path, nargs="+", help="folders with results.json")
    parser.add_argument("--picture", type=Path, help="draw the shares of answers to this PNG")
    options = parser.parse_args(arguments)
    try:
        studies = read_studies(options.studies)
        scores = pooled_scores(studies)
    except OneShotError as error:
        return fail(str(error), code=error.code)
    print(markdown(scores))
    if options.picture:
        shares = scores[scores["n"] > 0]
        colours = run_colours(list(dict.fromkeys(shares["run"])))
        save_figure(rates_with_intervals(shares, colours), options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
