"""Figures of stages' metrics that repairs, sweeps and findings all use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oneshot_lit.evaluation.metrics.registry import is_skill

ATTACK, REFUSAL = "/asr_keyword", "/over_refusal"
Metrics = Mapping[str, float | None]


def rates(metrics: Metrics, ending: str) -> dict[str, float]:
    """Return the scores of one metric over all prompt sets; what was not measured is left out."""
    return {k: v for k, v in metrics.items() if k.endswith(ending) and v is not None}


def worst(metrics: Metrics, ending: str) -> str | None:
    """Return the key of the prompt set with the highest rate; None without any."""
    values = rates(metrics, ending)
    return max(values, key=lambda key: values[key], default=None)


def largest_loss(before: Metrics, after: Metrics) -> tuple[str, float] | None:
    """Return the skill with the largest loss from one model to the other, and the loss.

    Skills are all task scores that both have; None if there are none.
    """
    losses = {
        key: old - new
        for key, new in after.items()
        if is_skill(key) and new is not None and (old := before.get(key)) is not None
    }
    return max(losses.items(), key=lambda item: item[1], default=None)


def set_name(key: str) -> str:
    """Return the prompt set of a key, ``<set>/<metric>``."""
    return key.rsplit("/", 1)[0]


def columns(stages: Mapping[str, Any]) -> list[str]:
    """Return every metric key, in the order of the stages."""
    return list(dict.fromkeys(key for stage in stages.values() for key in stage["metrics"]))
