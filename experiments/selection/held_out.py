"""The result of a pick on held-out prompts: attack success plus over-refusal, and its gap."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.intervals import LEVEL

_METRICS = ("asr_keyword", "over_refusal")
RESAMPLES = 1000
# Metric and set -> score of each prompt, in order.
Scores = dict[tuple[str, str], NDArray[np.float64]]


def held_out(stage: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return attack success and over-refusal, each of the worst set, and their sum.

    Args:
        stage: The stage's entry in ``results.json``.
        name: Its name.

    Raises:
        OneShotError: if one of them was not measured: half of the sum would look good.
    """
    worst = {}
    for metric in _METRICS:
        rates = [v for k, v in stage["metrics"].items() if k.endswith(f"/{metric}")]
        if not rates or None in rates:
            raise OneShotError(
                f"stages.{name}.test: measures no {metric}; a pick is judged on harmful and "
                "harmless prompts."
            )
        worst[metric] = max(rates)
    return {
        "asr": worst["asr_keyword"],
        "over_refusal": worst["over_refusal"],
        "sum": worst["asr_keyword"] + worst["over_refusal"],
    }


def gap_interval(pick: Path, best: Path) -> tuple[float, float] | None:
    """Return the bootstrap interval of the gap between two stages' sums, paired by prompt.

    Args:
        pick: The picked model's ``outcomes.jsonl``.
        best: The ``outcomes.jsonl`` of the model to compare with.

    Returns:
        Both ends at 95 %, or None if they did not answer the same prompts.
    """
    a, b = _scores(pick), _scores(best)
    if not a or {k: len(v) for k, v in a.items()} != {k: len(v) for k, v in b.items()}:
        return None
    rng = np.random.default_rng(0)
    drawn = {key: rng.integers(0, len(v), (RESAMPLES, len(v))) for key, v in a.items()}
    gaps = _sums(a, drawn) - _sums(b, drawn)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(gaps, (tail, 1 - tail))
    return float(low), float(high)


def _scores(file: Path) -> Scores:
    if not file.is_file():
        return {}
    scores: dict[tuple[str, str], list[float]] = {}
    for line in file.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        row = json.loads(line)
        for metric in _METRICS:
            if (score := row["scores"].get(metric)) is not None:
                scores.setdefault((metric, row["set"]), []).append(float(score))
    return {key: np.asarray(values) for key, values in scores.items()}


def _sums(
    scores: Scores, drawn: Mapping[tuple[str, str], NDArray[np.int64]]
) -> NDArray[np.float64]:
    """Return the sum of the worst sets' rates in every resample."""
    total = np.zeros(RESAMPLES)
    for metric in _METRICS:
        rates = [scores[k][drawn[k]].mean(1) for k in scores if k[0] == metric]
        total += np.max(rates, axis=0)
    return total
