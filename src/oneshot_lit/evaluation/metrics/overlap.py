"""ROUGE: how many words of an answer and its reference agree, by torchmetrics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

from torchmetrics.functional.text import rouge_score

from oneshot_lit.evaluation.metrics.base import TextScore, known


class Rouge1(TextScore):
    """Mean ROUGE-1 F1: single words that an answer and its reference share, in any order.

    Of English and other text in a-z and 0-9 only: a reference without these cannot be scored.
    """

    higher_is_better = True
    needs_references = True
    skill = True
    key: ClassVar[str] = "rouge1"

    def reference_problem(self, reference: str) -> str | None:
        """ROUGE counts runs of a-z and 0-9, lower-cased."""
        seen = any(c.isascii() and c.isalnum() for c in reference.lower())
        return None if seen else "has no word of a-z or 0-9"

    def scores(self, outputs: Sequence[str], references: Sequence[str | None]) -> list[float]:
        """Return the F1 of each answer; NaN where the reference has no word."""
        name = f"{self.key}_fmeasure"
        return [
            math.nan
            if self.reference_problem(reference)
            else float(rouge_score(output, reference, rouge_keys=self.key)[name])
            for output, reference in zip(outputs, known(references), strict=True)
        ]


class RougeL(Rouge1):
    """Mean ROUGE-L F1: the longest run of words, gaps allowed, that both have in this order."""

    key = "rougeL"
