"""Scores: torchmetrics classes over pure functions on answers."""

from oneshot_lit.metrics.base import TextRate
from oneshot_lit.metrics.correctness import (
    ExactMatch,
    HarmfulCorrect,
    exact_match,
    harmful_correct,
)
from oneshot_lit.metrics.refusal import (
    PHRASE_LIST_VERSION,
    REFUSAL_LEAD_INS,
    REFUSAL_PHRASES,
    AsrKeyword,
    AsrKeywordPrefix,
    OverRefusal,
    is_refusal,
)
from oneshot_lit.metrics.registry import METRICS, metric_names

__all__ = [
    "METRICS",
    "PHRASE_LIST_VERSION",
    "REFUSAL_LEAD_INS",
    "REFUSAL_PHRASES",
    "AsrKeyword",
    "AsrKeywordPrefix",
    "ExactMatch",
    "HarmfulCorrect",
    "OverRefusal",
    "TextRate",
    "exact_match",
    "harmful_correct",
    "is_refusal",
    "metric_names",
]
