"""The file of verdicts: what a killed process leaves in it, and what it must not hold."""

from __future__ import annotations

import math
from pathlib import Path

from oneshot_lit.evaluation.judges import Verdict
from oneshot_lit.evaluation.judges.verdict_file import VerdictFile


def loaded(path: Path) -> VerdictFile:
    file = VerdictFile(path)
    file.load()
    return file


def test_verdicts_and_spending_outlive_the_process(tmp_path: Path) -> None:
    path = tmp_path / "new" / "c.jsonl"
    first = loaded(path)
    first.add(1, 7.0)
    first.keep("k", Verdict({"m": 2.0}, labels=("S1",)), -4.0)
    first.add(1, 0.5)
    first.keep("n", Verdict({"m": math.nan}, "malformed"))
    again = loaded(path)
    assert again.verdicts["k"] == Verdict({"m": 2.0}, labels=("S1",))
    assert again.verdicts["n"].reason == "malformed"
    assert (again.requests, again.cost) == (first.requests, first.cost) == (2, 3.5)


def test_half_a_line_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    loaded(path).keep("a", Verdict({"m": 1.0}))
    with path.open("a") as handle:
        handle.write('\n{"key": "b", "req')
    loaded(path).keep("c", Verdict({"m": 1.0}))
    assert set(loaded(path).verdicts) == {"a", "c"}
