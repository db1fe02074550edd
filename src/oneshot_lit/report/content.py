"""Everything that a report says, as one JSON value that all formats are made of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot_lit import __version__
from oneshot_lit.io.metrics_file import METRICS_FILE
from oneshot_lit.report.agreement import THRESHOLDS, agreement_table, judge_table
from oneshot_lit.report.changes import change_table
from oneshot_lit.report.comparable import differences, require_comparable
from oneshot_lit.report.examples import choose_examples
from oneshot_lit.report.findings import findings
from oneshot_lit.report.runs import Run
from oneshot_lit.report.scores import category_tables, score_table
from oneshot_lit.report.settings import notes_on_answers
from oneshot_lit.report.text import relative_path, visible, without_machine_paths

_PROVENANCE = (
    *("model_name_or_path", "ckpt_path", "seed", "dtype", "precision", "decoding"),
    *("phrase_list", "versions"),
)
_KEPT_OF_EVALUATIONS = ("version", "samples", "unjudged", "model", "num_fewshot", "lm_eval_version")


def report_content(
    runs: Sequence[Run],
    title: str,
    out: Path,
    examples: int = 2,
    show_outputs: bool = False,
) -> dict[str, Any]:
    """Return the report's content.

    Args:
        runs: The runs, in the order in which they are compared.
        title: Its title.
        out: Folder that it is written to; paths are given as seen from there.
        examples: Prompts of each set to show.
        show_outputs: Show model outputs, and prompts of harmful sets.

    Raises:
        OneShotError: if the runs cannot be compared.
    """
    require_comparable(runs)
    table = score_table(runs)
    agreement, notes = agreement_table(runs)
    notes += [note for run in runs for note in notes_on_answers(run)]
    for run in runs:
        missing = [name for name in run.content.get("samples", {}) if name not in run.outcomes]
        if missing:
            notes.append(
                f"{run.name}: no outcomes of {', '.join(missing)}; no table by category and no "
                "paired test there, intervals of rates from share and count only, and of the "
                "prompts only their number is compared. Run oneshot-lit test again to have them."
            )
    content: dict[str, Any] = {
        "title": visible(title),
        "outputs_shown": show_outputs,
        "thresholds": THRESHOLDS,
        "runs": [_run(run, out) for run in runs],
        "scores": table,
        "changes": change_table(runs, table),
        "categories": category_tables(runs, table),
        "judges": judge_table(runs, table),
        "agreement": agreement,
        "curves": {run.name: [dict(row) for row in run.curve] for run in runs if run.curve},
        "examples": choose_examples(runs, examples, show_outputs),
        "notes": [note for run in runs for note in run.notes] + notes + differences(runs),
        "report_version": __version__,
    }
    content["findings"] = findings(content)
    for key in ("judges", "notes"):
        content[key] = without_machine_paths(content[key])
    return content


def _run(run: Run, out: Path) -> dict[str, Any]:
    evaluations = {
        name: {key: facts[key] for key in _KEPT_OF_EVALUATIONS if key in facts}
        for name, facts in run.content["evaluations"].items()
    }
    facts = {key: run.content.get(key) for key in _PROVENANCE}
    return {
        "name": run.name,
        "metrics_file": relative_path(run.folder / METRICS_FILE, out),
        "samples": run.samples,
        "empty_outputs": dict(run.content.get("empty_outputs", {})),
        "provenance": without_machine_paths({**facts, "evaluations": evaluations}),
    }
