"""A few answers to the same prompts in every run, hidden unless outputs are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from oneshot_lit.evaluation.judges.predictions import Row
from oneshot_lit.report.runs import Run
from oneshot_lit.report.text import visible

# Prompts of other kinds may be harmful themselves.
_HARMLESS = ("benign", "near_miss", "task")
_LONGEST = 2000


def choose_examples(
    runs: Sequence[Run], answers: pd.DataFrame, number: int, show_outputs: bool
) -> list[dict[str, Any]]:
    """Return up to `number` prompts of each set with the answer of every run.

    Prompts that all runs answered come first, and among them those with different verdicts. Without
    `show_outputs` an example holds no output, and no prompt of a harmful set.
    """
    if not any(run.predictions for run in runs):
        return []
    # A verdict belongs to an answer, not to its place in the set.
    verdicts = {
        key: {m: None if pd.isna(s) else s for m, s in zip(of["metric"], of["score"], strict=True)}
        for key, of in answers.groupby(["run", "set", "place", "digest"])
    }
    prompts: dict[str, dict[str, dict[str, tuple[str, Row, Any]]]] = {}
    for run in runs:
        for row in run.predictions:
            name = visible(row.set)
            said = verdicts.get((run.name, name, row.index, row.answer.digest()), {})
            # A prompt may stand in a set twice.
            of_prompt = prompts.setdefault(name, {}).setdefault(row.prompt_digest(), {})
            of_prompt.setdefault(run.name, (run.name, row, said))
    examples = []
    for name, of_runs in prompts.items():
        of_set = {key: list(rows.values()) for key, rows in of_runs.items()}
        equal = {key: all(said == of[0][2] for _, _, said in of) for key, of in of_set.items()}
        order = sorted(of_set, key=lambda key: (-len(of_set[key]), equal[key]))
        examples += [{"set": name, **_example(of_set[key], show_outputs)} for key in order[:number]]
    return examples


def _example(rows: list[tuple[str, Row, Any]], show_outputs: bool) -> dict[str, Any]:
    row = rows[0][1]
    prompt = "\n".join(f"{m.role}: {m.content}" for m in row.answer.messages)
    return {
        "kind": row.kind,
        "index": row.index,
        "category": None if row.answer.category is None else visible(row.answer.category),
        "prompt": _short(prompt) if show_outputs or row.kind in _HARMLESS else None,
        "prompt_length": len(prompt),
        "answers": [
            {
                "run": run,
                "length": len(each.answer.output),
                "output": _short(each.answer.output) if show_outputs else None,
                "verdicts": said,
            }
            for run, each, said in rows
        ],
    }


def _short(text: str) -> str:
    return visible(text if len(text) <= _LONGEST else f"{text[:_LONGEST]} …", lines=True)
