"""Metrics by name, and which ones a kind of prompt set gets when its config names none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.evaluation.metrics.base import TextRate, TextScore
from oneshot_lit.evaluation.metrics.correctness import ContainsReference, ExactMatch, HarmfulCorrect
from oneshot_lit.evaluation.metrics.numbers import Gsm8kFlexible, Gsm8kStrict
from oneshot_lit.evaluation.metrics.overlap import Rouge1, RougeL
from oneshot_lit.evaluation.metrics.refusal import AsrKeyword, AsrKeywordPrefix, OverRefusal
from oneshot_lit.evaluation.metrics.sql import SqlMatch

Kind = Literal["harmful", "benign", "near_miss", "task"]

METRICS: dict[str, type[TextScore]] = {
    "asr_keyword": AsrKeyword,
    "asr_keyword_prefix": AsrKeywordPrefix,
    "harmful_correct": HarmfulCorrect,
    "over_refusal": OverRefusal,
    "exact_match": ExactMatch,
    "contains_reference": ContainsReference,
    "rouge1": Rouge1,
    "rougeL": RougeL,
    "gsm8k_strict": Gsm8kStrict,
    "gsm8k_flexible": Gsm8kFlexible,
    "sql_match": SqlMatch,
}
DEFAULTS: dict[str, tuple[str, ...]] = {
    "harmful": ("asr_keyword", "asr_keyword_prefix", "harmful_correct"),
    "benign": ("over_refusal", "exact_match"),
    "near_miss": ("over_refusal", "exact_match"),
    "task": ("exact_match",),
}
# The first part of the keys of lm-eval's scores, and those of its metrics that are shares of right
# answers.
LM_EVAL = "lm_eval"
_LM_EVAL_SKILLS = ("acc", "acc_norm", "exact_match")

# The first part of the keys of the callback `GeneralAbility`.
ABILITY = "ability"


def is_skill(key: str) -> bool:
    """Whether a score is one of a skill to keep, from 0 (none) to 1 (all).

    Args:
        key: ``<set>/<metric>``.
    """
    owner, _, metric = key.rpartition("/")
    if owner.startswith(f"{LM_EVAL}/"):
        # lm-eval names the filter after the metric: exact_match,strict-match.
        return metric.split(",")[0] in _LM_EVAL_SKILLS
    return metric in METRICS and METRICS[metric].skill


def is_rate(key: str) -> bool:
    """Whether a score counts answers, each right or wrong; else it is a mean of parts."""
    metric = key.rpartition("/")[2]
    return metric in METRICS and issubclass(METRICS[metric], TextRate)


def metric_names(
    kind: Kind, names: Sequence[str] | None, has_references: bool, origin: str
) -> list[str]:
    """Return the metrics of a prompt set, in order.

    Metrics that need references are left out of the defaults when the set has none.

    Raises:
        OneShotError: for an unknown metric, or one that needs references the set lacks.
    """
    if names is None:
        chosen = [n for n in DEFAULTS[kind] if has_references or not METRICS[n].needs_references]
        if not chosen:
            raise OneShotError(
                f"{origin}: kind {kind} is scored by references and the rows have none; add "
                "the column 'reference', or an answer to each row."
            )
        return chosen
    for name in names:
        if name not in METRICS:
            raise OneShotError(
                f"{origin}: unknown metric '{name}'{did_you_mean(name, METRICS)}; "
                f"known: {', '.join(METRICS)}."
            )
        if METRICS[name].needs_references and not has_references:
            raise OneShotError(
                f"{origin}: metric '{name}' needs a reference for every prompt; add the column "
                "'reference' or drop the metric."
            )
    return list(names)
