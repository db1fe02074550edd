"""Judges of answers with one small interface; each versioned, each able to say "could not judge".

Importing this package is cheap: models and clients are imported when a judge starts to judge.
"""

from oneshot_lit.evaluation.judges.base import Answer, Judge, Verdict
from oneshot_lit.evaluation.judges.classifier import ClassifierJudge
from oneshot_lit.evaluation.judges.endpoint import EndpointJudge
from oneshot_lit.evaluation.judges.keyword import KeywordJudge
from oneshot_lit.evaluation.judges.published import (
    BeaverDamJudge,
    HarmBenchJudge,
    LlamaGuardJudge,
)
from oneshot_lit.evaluation.judges.rubrics import HarmfulnessRubric, Rubric, StrongRejectRubric

__all__ = [
    "Answer",
    "BeaverDamJudge",
    "ClassifierJudge",
    "EndpointJudge",
    "HarmBenchJudge",
    "HarmfulnessRubric",
    "Judge",
    "KeywordJudge",
    "LlamaGuardJudge",
    "Rubric",
    "StrongRejectRubric",
    "Verdict",
]
