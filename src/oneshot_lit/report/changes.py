"""What changed from one run to the next: the same prompts in pairs, with an exact test."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from oneshot_lit.evaluation.intervals import Estimate, apart
from oneshot_lit.report.runs import Run
from oneshot_lit.report.scores import rows_of


def mcnemar(gained: int, lost: int) -> float:
    """Return the two-sided exact p-value that changes go both ways alike (binomial test)."""
    changed = gained + lost
    return float(stats.binomtest(gained, changed).pvalue) if changed else 1.0


def by_prompt(run: Run, key: str, metric: str) -> dict[tuple[str, int], float]:
    """Return (digest of the prompt, how often it came before) -> score, without the unscored.

    A judge may have judged other prompts than the test of the same set, so the digests are those
    that stand in its own rows; a row without one is left out.
    """
    seen: dict[str, int] = {}
    found = {}
    for row in sorted(rows_of(run, key), key=lambda row: row.index):
        if row.prompt is None:
            continue
        number = seen[row.prompt] = seen.get(row.prompt, -1) + 1
        if (score := row.scores.get(metric)) is not None:
            found[row.prompt, number] = score
    return found


def change_table(runs: Sequence[Run], table: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each metric of two runs in a row, and of the first and the last run.

    ``pairs``, ``kept`` (hits in both), ``gained``, ``lost`` and ``p`` are None where the answers
    cannot be paired; ``apart`` says whether the intervals have nothing in common.
    """
    found = []
    steps = [*itertools.pairwise(runs), *([(runs[0], runs[-1])] if len(runs) > 2 else [])]
    for (a, b), row in itertools.product(steps, table):
        first, second = (row["runs"][run.name] for run in (a, b))
        if first is None or second is None or None in (first["value"], second["value"]):
            continue
        change: dict[str, Any] = {
            **{k: row[k] for k in ("key", "set", "metric", "share")},
            "from": a.name,
            "to": b.name,
            "before": first["value"],
            "after": second["value"],
            "apart": apart(Estimate(**first), Estimate(**second)),
            **dict.fromkeys(("pairs", "kept", "gained", "lost", "p")),
        }
        before, after = (by_prompt(run, row["key"], row["metric"]) for run in (a, b))
        both = [key for key in before if key in after]
        if row["share"] and both:
            gained = sum(before[key] < after[key] for key in both)
            lost = sum(before[key] > after[key] for key in both)
            kept = sum(before[key] == after[key] == 1.0 for key in both)
            change |= {"pairs": len(both), "kept": kept, "gained": gained, "lost": lost}
            change["p"] = mcnemar(gained, lost)
        found.append(change)
    return found
