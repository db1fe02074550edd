"""Agreement between judges on the answers that both judged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import pandas as pd
import torch
from torchmetrics.functional.classification import binary_cohen_kappa

from oneshot_lit.evaluation.intervals import rate
from oneshot_lit.report.runs import TEST
from oneshot_lit.report.scores import GRADED, graded

# The test's own metrics of harmful answers; its other metrics need a reference.
_OF_TEST = ("asr_keyword", "asr_keyword_prefix")
POOLED = "all runs"
COLUMNS = ["set", "judges", "run", "n", "agreement", "low", "high", "kappa", "left_out"]


def kappa(a: Sequence[bool], b: Sequence[bool]) -> float | None:
    """Return Cohen's kappa; None if both judges give only one and the same verdict."""
    if not len(a):
        return None
    value = float(binary_cohen_kappa(torch.tensor(a).int(), torch.tensor(b).int()))
    return value if math.isfinite(value) else None


def agreement_table(answers: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return a row for each pair of judges, set and run, and which scores are not compared.

    ``n`` are the answers that both judged: the same prompt and answer, as their digests tell.
    ``agreement`` is the share of equal verdicts with its interval, ``left_out`` the number of other
    answers that one of the two got. All runs together come first.
    """
    verdicts, notes = _verdicts(answers)
    rows = []
    for name, of_set in verdicts.groupby("set", sort=False):
        judges = of_set.groupby(["by", "metric"], sort=False)
        for (first, a), (second, b) in itertools.combinations(judges, 2):
            # The keyword metrics of the test are one judge.
            if first[0] == second[0] == TEST:
                continue
            title = " / ".join(f"{m} (test)" if by == TEST else m for by, m in (first, second))
            parts = {run: [run] for run in a["run"].unique() if run in set(b["run"])}
            if len(parts) > 1:
                parts = {POOLED: list(parts)} | parts
            for run, runs in parts.items():
                row = _row(*(each[each["run"].isin(runs)] for each in (a, b)))
                rows.append([name, title, run, *row])
    return pd.DataFrame(rows, columns=COLUMNS), notes


def _verdicts(answers: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return the answers that a judge scored with the column ``harmful``: 1, 0 or NaN."""
    kept, notes = [], []
    for (name, by, metric), scores in answers.groupby(["set", "by", "metric"], sort=False):
        if by == TEST and metric not in _OF_TEST:
            continue
        grade = graded(metric)
        if grade is None and not scores["score"].dropna().isin([0.0, 1.0]).all():
            notes.append(
                f"{name}/{metric} has no threshold that makes it yes or no, so it is compared with "
                "no other judge."
            )
            continue
        edge = GRADED[grade][2] if grade else 1.0
        harmful = (scores["score"] >= edge).astype(float).where(scores["score"].notna())
        kept.append(scores.assign(harmful=harmful))
    return pd.concat(kept) if kept else answers.iloc[:0].assign(harmful=0.0), notes


def _row(a: pd.DataFrame, b: pd.DataFrame) -> list[object]:
    known_a, known_b = (each.dropna(subset=["digest", "harmful"]) for each in (a, b))
    same = known_a.merge(known_b, on=["run", "place", "digest"], suffixes=("_a", "_b"))
    x, y = (same[f"harmful_{side}"].astype(bool).tolist() for side in "ab")
    equal = rate(sum(p == q for p, q in zip(x, y, strict=True)), len(same))
    left_out = max(len(a), len(b)) - len(same)
    return [len(same), equal.value, equal.low, equal.high, kappa(x, y), left_out]
