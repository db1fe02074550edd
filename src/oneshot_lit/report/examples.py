"""A few answers to the same prompts in every run, behind a bar unless outputs are asked for."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from typing import Any

from oneshot_lit.evaluation.judges.predictions import Row
from oneshot_lit.report.answers import answers_of_test
from oneshot_lit.report.rows import Scored
from oneshot_lit.report.runs import Run
from oneshot_lit.report.text import visible

# Prompts of other kinds may be harmful themselves.
_HARMLESS = ("benign", "near_miss", "task")
_LONGEST_PROMPT, _LONGEST_OUTPUT = 600, 2000


def choose_examples(runs: Sequence[Run], number: int, show_outputs: bool) -> list[dict[str, Any]]:
    """Return up to `number` prompts of each set with every run's answer.

    Prompts whose verdicts differ between the runs come first, then those that come first in the
    set; a prompt that only some runs answered is taken if nothing else is there. Without
    `show_outputs` an example holds no output, and no prompt of a harmful set.
    """
    answers: dict[str, dict[str, dict[str, Row]]] = {}
    for run in runs:
        for row in run.predictions:
            answers.setdefault(row.set, {}).setdefault(_digest(row), {}).setdefault(run.name, row)
    indexes = {run.name: _index(run) for run in runs}
    scored = {run.name: answers_of_test(run) for run in runs}
    found = []
    for name, prompts in answers.items():
        ranked = []
        for place, (digest, rows) in enumerate(prompts.items()):
            verdicts = {n: _verdicts(indexes[n], row, scored[n]) for n, row in rows.items()}
            differ = len({json.dumps(v, sort_keys=True) for v in verdicts.values()}) > 1
            ranked.append((-len(rows), not differ, place, digest, verdicts))
        for *_, digest, verdicts in sorted(ranked, key=lambda item: item[:3])[:number]:
            found.append(_example(name, prompts[digest], verdicts, show_outputs))
    return found


def _example(
    name: str, rows: dict[str, Row], verdicts: dict[str, Any], show_outputs: bool
) -> dict[str, Any]:
    row = next(iter(rows.values()))
    shown = show_outputs or row.kind in _HARMLESS
    prompt = "\n".join(f"{m.role}: {m.content}" for m in row.answer.messages)
    return {
        "set": name,
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


def _digest(row: Row) -> str:
    turns = json.dumps([[m.role, m.content] for m in row.answer.messages])
    return hashlib.sha256(turns.encode("utf-8", "replace")).hexdigest()


def _index(run: Run) -> dict[tuple[str, int], list[tuple[bool, Scored]]]:
    """Return (set, index) -> what was said of that answer, and whether a judge said it."""
    found: dict[tuple[str, int], list[tuple[bool, Scored]]] = {}
    for judged, sets in ((False, run.outcomes), *((True, of) for of in run.judgments.values())):
        for scored in itertools.chain.from_iterable(sets.values()):
            found.setdefault((scored.set, scored.index), []).append((judged, scored))
    return found


def _verdicts(
    index: dict[tuple[str, int], list[tuple[bool, Scored]]],
    row: Row,
    of_test: dict[tuple[str, int], str],
) -> dict[str, float | None]:
    """Return what test and judges say of an answer, as far as they are known to mean this one."""
    found: dict[str, float | None] = {}
    digest = row.answer.digest()
    for judged, scored in index.get((row.set, row.index), ()):
        known = scored.digest if judged else of_test.get((row.set, row.index))
        if known == digest:
            found |= scored.scores
    return found


def _short(text: str, longest: int) -> str:
    cut = text if len(text) <= longest else f"{text[:longest]} …"
    return visible(cut, lines=True)
