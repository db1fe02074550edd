"""Scores: torchmetrics classes over pure functions on answers."""

from oneshot_lit.evaluation.metrics.base import TextRate, TextScore
from oneshot_lit.evaluation.metrics.correctness import (
    ContainsReference,
    ExactMatch,
    HarmfulCorrect,
    contains_reference,
    exact_match,
    harmful_correct,
)
from oneshot_lit.evaluation.metrics.numbers import (
    Gsm8kFlexible,
    Gsm8kStrict,
    last_number,
    marked_number,
)
from oneshot_lit.evaluation.metrics.overlap import Rouge1, RougeL
from oneshot_lit.evaluation.metrics.refusal import (
    PHRASE_LIST_VERSION,
    REFUSAL_LEAD_INS,
    REFUSAL_PHRASES,
    AsrKeyword,
    AsrKeywordPrefix,
    OverRefusal,
    is_refusal,
)
from oneshot_lit.evaluation.metrics.registry import METRICS, is_skill, metric_names
from oneshot_lit.evaluation.metrics.sql import SqlMatch, sql_match

__all__ = [
    "METRICS",
    "PHRASE_LIST_VERSION",
    "REFUSAL_LEAD_INS",
    "REFUSAL_PHRASES",
    "AsrKeyword",
    "AsrKeywordPrefix",
    "ContainsReference",
    "ExactMatch",
    "Gsm8kFlexible",
    "Gsm8kStrict",
    "HarmfulCorrect",
    "OverRefusal",
    "Rouge1",
    "RougeL",
    "SqlMatch",
    "TextRate",
    "TextScore",
    "contains_reference",
    "exact_match",
    "harmful_correct",
    "is_refusal",
    "is_skill",
    "last_number",
    "marked_number",
    "metric_names",
    "sql_match",
]
