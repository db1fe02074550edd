"""`Report`: the content of a report, from which all formats are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pandas as pd

from oneshot_lit import __version__
from oneshot_lit.io.metrics_file import METRICS_FILE
from oneshot_lit.report.agreement import agreement_table
from oneshot_lit.report.comparable import require_comparable
from oneshot_lit.report.examples import choose_examples
from oneshot_lit.report.findings import findings
from oneshot_lit.report.runs import Run
from oneshot_lit.report.scores import (
    all_scores,
    category_table,
    change_table,
    run_steps,
    score_table,
)
from oneshot_lit.report.text import visible, without_machine_paths

_PROVENANCE = (
    *("model_name_or_path", "gguf_sha256", "ckpt_path", "seed", "dtype", "precision", "decoding"),
    *("phrase_list", "versions", "evaluations"),
)
# With more runs than these, each run is a row of the scores, and the longer tables are left out.
_MANY_RUNS = 8


@dataclass(frozen=True)
class Section:
    """A part of the page that only some reports have, such as the sweeps of a study.

    Attributes:
        title: Its heading.
        about: What it shows.
        lines: Sentences, as a list.
        table: Texts; its index names the rows.
        figure: A picture.
    """

    title: str
    about: str = ""
    lines: Sequence[str] = ()
    table: pd.DataFrame | None = None
    figure: Any = None


@dataclass(frozen=True)
class Report:
    """The content of a report; each table is tidy, with one value in a row.

    Attributes:
        title: Its title.
        outputs_shown: Whether examples hold model outputs and harmful prompts.
        runs: Name, path, counts and provenance of each run.
        findings: The findings, in sentences.
        notes: What was left out, and what differs between the runs.
        scores: A row for each score and run.
        changes: A row for each score of two runs.
        categories: A row for each score, category and run.
        agreement: A row for each pair of judges, set and run.
        examples: Prompts with the answer of every run.
        curves: Run -> the picture of its realignment.
        sections: Parts that only some reports have; they come first.
        report_version: Version of the package.
    """

    title: str
    outputs_shown: bool
    runs: list[dict[str, Any]]
    findings: list[str]
    notes: list[str]
    scores: pd.DataFrame
    changes: pd.DataFrame
    categories: pd.DataFrame
    agreement: pd.DataFrame
    examples: list[dict[str, Any]]
    curves: dict[str, Path] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    report_version: str = __version__

    @property
    def names(self) -> list[str]:
        """The names of the runs."""
        return [run["name"] for run in self.runs]

    @property
    def many_runs(self) -> bool:
        """Whether there are too many runs for a column each."""
        return len(self.runs) > _MANY_RUNS

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; a table is a list of rows."""
        names = [each.name for each in fields(self) if each.name not in ("curves", "sections")]
        values = {name: getattr(self, name) for name in names}
        return {k: table_rows(v) if isinstance(v, pd.DataFrame) else v for k, v in values.items()}


def table_rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table as plain JSON values."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def build_report(
    runs: Sequence[Run],
    title: str,
    examples: int = 2,
    show_outputs: bool = False,
    allow_differences: bool = False,
    steps: Sequence[tuple[str, str]] | None = None,
) -> Report:
    """Return the report of some runs.

    Args:
        runs: The runs, in the order in which they are compared.
        title: Its title.
        examples: Prompts of each set to show.
        show_outputs: Show model outputs, and prompts of harmful sets.
        allow_differences: Compare runs with other prompts or settings as well.
        steps: The pairs of runs whose changes are shown; None for each run and the next one, and
            the first and the last.

    Raises:
        OneShotError: if the runs cannot be compared.
    """
    many = len(runs) > _MANY_RUNS
    differences = require_comparable(runs, allow_differences)
    answers = all_scores(runs)
    scores = score_table(runs, answers)
    scores["by"] = scores["by"].map(without_machine_paths)
    steps = run_steps([run.name for run in runs]) if steps is None else steps
    changes = change_table(steps, scores, answers)
    agreement, notes = agreement_table(answers)
    return Report(
        title=visible(title),
        outputs_shown=show_outputs,
        runs=[_run(run) for run in runs],
        findings=findings(runs, scores, changes.iloc[: 0 if many else None]),
        notes=without_machine_paths([*(n for r in runs for n in r.notes), *notes, *differences]),
        scores=scores,
        changes=changes,
        categories=category_table(answers),
        agreement=agreement,
        curves={run.name: run.curve for run in runs if run.curve is not None},
        examples=choose_examples(runs, answers, examples, show_outputs),
    )


def _run(run: Run) -> dict[str, Any]:
    facts = {key: run.content.get(key) for key in _PROVENANCE}
    return {
        "name": run.name,
        "metrics_file": without_machine_paths(str(run.folder / METRICS_FILE)),
        "samples": run.samples,
        "empty_outputs": dict(run.content.get("empty_outputs", {})),
        "provenance": without_machine_paths(facts),
    }
