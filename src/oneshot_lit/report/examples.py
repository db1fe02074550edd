"""A few answers to the same prompts in every run, hidden unless outputs are asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from oneshot_lit.evaluation.judges.predictions import Row
from oneshot_lit.report.runs import Run
from oneshot_lit.report.text import visible

# Prompts of other kinds may be harmful themselves.
_HARMLESS = ("benign", "near_miss", "task")
_LONGEST_PROMPT, _LONGEST_OUTPUT = 600, 2000


def choose_examples(
    runs: Sequence[Run], answers: pd.DataFrame, number: int, show_outputs: bool
) -> list[dict[str, Any]]:
    """Return up to `number` prompts of each set with the answer of every run.

    Prompts that all runs answered come first, and among them those with different verdicts. Without
    `show_outputs` an example holds no output, and no prompt of a harmful set.
    """
    # A verdict belongs to an answer, not to its place in the set.
    said: dict[Any, dict[str, float | None]] = defaultdict(dict)
    for row in answers.itertuples():
        score = None if pd.isna(row.score) else row.score
        said[row.run, row.set, row.place, row.digest][row.metric] = score
    prompts: dict[str, dict[str, dict[str, Row]]] = {}
    for run in runs:
        for row in run.predictions:
            of_set = prompts.setdefault(visible(row.set), {})
            of_set.setdefault(row.prompt_digest(), {}).setdefault(run.name, row)
    examples = []
    for name, of_set in prompts.items():
        chosen = []
        for rows in of_set.values():
            verdicts = {
                run: said.get((run, name, row.index, row.answer.digest()), {})
                for run, row in rows.items()
            }
            differ = any(other != next(iter(verdicts.values())) for other in verdicts.values())
            chosen.append((-len(rows), not differ, rows, verdicts))
        for *_, rows, verdicts in sorted(chosen, key=lambda item: item[:2])[:number]:
            examples.append({"set": name, **_example(rows, verdicts, show_outputs)})
    return examples


def _example(rows: dict[str, Row], verdicts: dict[str, Any], show_outputs: bool) -> dict[str, Any]:
    row = next(iter(rows.values()))
    shown = show_outputs or row.kind in _HARMLESS
    prompt = "\n".join(f"{m.role}: {m.content}" for m in row.answer.messages)
    return {
        "kind": row.kind,
        "index": row.index,
        "category": None if row.answer.category is None else visible(row.answer.category),
        "prompt": _short(prompt, _LONGEST_PROMPT) if shown else None,
        "prompt_length": len(prompt),
        "answers": [
            {
                "run": run,
                "length": len(row.answer.output),
                "output": _short(row.answer.output, _LONGEST_OUTPUT) if show_outputs else None,
                "verdicts": verdicts[run],
            }
            for run, row in rows.items()
        ],
    }


def _short(text: str, longest: int) -> str:
    return visible(text if len(text) <= longest else f"{text[:longest]} …", lines=True)
