"""The units of SSAH against numpy: golden scores, labels, and rows of several lengths."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from oneshot_lit.methods.finetuning.safety_units import (
    InputVariance,
    Over,
    frozen_units,
    label_units,
    unit_scores,
)

GOLDEN = Path(__file__).with_name("golden") / "ssah"
FACTS = json.loads((GOLDEN / "data.json").read_text())
DATA = np.load(GOLDEN / "data.npz")
GROUPS = {"RU": "redundant", "SCU": "safety", "UCU": "utility", "CU": "complex"}


def scores(kind: str, count: int, over: Over) -> Tensor:
    variance = InputVariance(12, over)
    for n in range(count):
        x = torch.tensor(DATA[f"X{kind}{n}"])
        variance.add(x, torch.ones(x.shape[:2]))
    return unit_scores(variance.variance, torch.tensor(DATA["W"]))


@pytest.mark.parametrize(("over", "ending"), [("tokens", ""), ("sequences", "_positionwise")])
def test_scores(over: Over, ending: str) -> None:
    np.testing.assert_allclose(scores("s", 5, over), DATA[f"I_s{ending}"], rtol=1e-6)
    np.testing.assert_allclose(scores("u", 7, over), DATA[f"I_u{ending}"], rtol=1e-6)


def test_labels_and_frozen_units() -> None:
    safety, utility = scores("s", 5, "tokens"), scores("u", 7, "tokens")
    counts = {GROUPS[name]: n for name, n in FACTS["counts"].items()}
    labels = label_units(safety, utility, counts)
    assert labels == [GROUPS[name] for name in FACTS["labels"]]
    best = sorted((u for u in range(12) if labels[u] == "complex"), key=lambda u: -safety[u])
    assert best == FACTS["cu_sorted_by_I_s"]
    assert frozen_units(labels, safety, 1 / 12) == FACTS["frozen_example"]
    assert frozen_units(labels, safety, 0.0) == [10, 11]
    # No more complex units than there are.
    assert len(frozen_units(labels, safety, 1.0)) == labels.count("complex") + 2


def test_padding_and_batches_change_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = [5 + rng.normal(size=(n, 3)) for n in (4, 2, 6)]
    padded, mask = np.full((3, 6, 3), 9.0), np.zeros((3, 6))
    for n, row in enumerate(rows):
        padded[n, : len(row)], mask[n, : len(row)] = row, 1
    for over in ("tokens", "sequences"):
        variance = InputVariance(3, over)  # type: ignore[arg-type]
        variance.add(torch.tensor(padded[:1]), torch.tensor(mask[:1]))
        variance.add(torch.tensor(padded[1:]), torch.tensor(mask[1:]))
        if over == "tokens":
            expected = np.concatenate(rows).var(0, ddof=1)
        else:
            at = [np.array([row[p] for row in rows if len(row) > p]) for p in range(6)]
            expected = sum(own.var(0, ddof=1) for own in at if len(own) > 1)
        np.testing.assert_allclose(variance.variance, expected, rtol=1e-10)
