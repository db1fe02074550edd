"""Scores: torchmetrics classes over pure functions on answers."""

from oneshot_lit.evaluation.metrics.base import TextRate, TextScore
from oneshot_lit.evaluation.metrics.registry import METRICS
from oneshot_lit.evaluation.metrics.sql import SqlMatch

__all__ = ["METRICS", "SqlMatch", "TextRate", "TextScore"]
