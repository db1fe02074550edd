"""ROUGE against counting by hand, and against the package that the papers use."""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from functools import cache

import pytest

from oneshot_lit.evaluation.metrics import METRICS

WORDS = [
    "select",
    "name",
    "from",
    "Table_1",
    "where",
    "id",
    "=",
    "'7'",
    "caf\u00e9",
    "\u4f60",
    ",",
    "AND",
]


def tokens(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def f1(hits: int, output: list[str], reference: list[str]) -> float:
    if not hits:
        return 0.0
    precision, recall = hits / len(output), hits / len(reference)
    return 2 * precision * recall / (precision + recall)


def rouge1(output: str, reference: str) -> float:
    a, b = tokens(output), tokens(reference)
    return f1((Counter(a) & Counter(b)).total() if a and b else 0, a, b)


def rouge_l(output: str, reference: str) -> float:
    a, b = tokens(output), tokens(reference)

    @cache
    def longest(i: int, j: int) -> int:
        if i == len(a) or j == len(b):
            return 0
        if a[i] == b[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    return f1(longest(0, 0), a, b)


@pytest.mark.parametrize(("name", "own"), [("rouge1", rouge1), ("rougeL", rouge_l)])
def test_rouge_equals_counting(name: str, own) -> None:
    rng = random.Random(0)
    outputs = [" ".join(rng.choices(WORDS, k=rng.randint(0, 12))) for _ in range(80)]
    references = [" ".join(["x", *rng.choices(WORDS, k=rng.randint(0, 12))]) for _ in range(80)]
    expected = [own(o, r) for o, r in zip(outputs, references, strict=True)]
    assert 0 < sum(expected) < 80
    metric = METRICS[name]()
    # torchmetrics gives float32.
    assert metric.scores(outputs, references) == pytest.approx(expected, abs=1e-7)
    metric.update(outputs, references)
    assert float(metric.compute()) == pytest.approx(sum(expected) / 80, abs=1e-7)


@pytest.mark.parametrize("name", ["rouge1", "rougeL"])
def test_rouge_equals_the_package_of_the_papers(name: str) -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer([name], use_stemmer=False)
    for output, reference in [
        ("SELECT name FROM t", "select id, name from T where id = 7"),
        ("the the the", "the cat"),
        ("", "the cat"),
        ("caf\u00e9 au lait", "cafe au lait"),
    ]:
        expected = scorer.score(reference, output)[name].fmeasure
        assert METRICS[name]().scores([output], [reference]) == pytest.approx([expected], abs=1e-7)


def test_a_reference_without_a_word_cannot_be_scored() -> None:
    metric = METRICS["rouge1"]()
    (score,) = metric.scores(["anything"], ["\u4f60\u597d ."])
    assert math.isnan(score)
    assert "no word" in (metric.reference_problem("\u4f60\u597d .") or "")
    assert metric.reference_problem("7") is None
    # The Kelvin sign is lower-cased to an ASCII letter, as torchmetrics does it.
    assert METRICS["rouge1"]().scores(["k"], ["\u212a"]) == [1.0]


def test_order_counts_for_rouge_l_alone() -> None:
    pair = (["b a"], ["a b"])
    assert METRICS["rouge1"]().scores(*pair) == [1.0]
    assert METRICS["rougeL"]().scores(*pair) == [0.5]
