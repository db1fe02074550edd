"""SafeR-CLIP's pure functions against golden numbers and plain loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oneshot_lit.methods.safer_clip.losses import (
    TermWeights,
    curriculum_levels,
    loss_terms,
    nearest_safe,
    retrieval_scores,
    similarities,
    total_loss,
)

GOLDEN = Path(__file__).parent / "golden" / "safer_clip"
NUMBERS = json.loads((GOLDEN / "data.json").read_text())
ARRAYS: dict[str, Any] = dict(np.load(GOLDEN / "data.npz"))
TRAINED = {
    "unsafe_image": "V_unsafe",
    "unsafe_text": "T_unsafe",
    "safe_image": "V_safe",
    "safe_text": "T_safe",
}


def tensor(name: str) -> Tensor:
    return torch.tensor(ARRAYS[name])


def golden_terms() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    trained = {item: tensor(name).requires_grad_() for item, name in TRAINED.items()}
    frozen = {item: tensor(f"{n[0]}0{n[1:]}") for item, n in TRAINED.items()}
    near, _ = nearest_safe(frozen["unsafe_text"], frozen["safe_text"])
    chosen = {kind: frozen[f"safe_{kind}"][near] for kind in ("image", "text")}
    return trained, loss_terms(trained, frozen, chosen)


def test_the_golden_redirection_and_curriculum() -> None:
    table = similarities(tensor("T0_unsafe"), tensor("T0_safe"))
    torch.testing.assert_close(table, tensor("similarity"), atol=1e-5, rtol=0)
    near, values = nearest_safe(tensor("T0_unsafe"), tensor("T0_safe"))
    assert near.tolist() == NUMBERS["nearest"] == tensor("nearest").tolist()
    torch.testing.assert_close(values, torch.tensor(NUMBERS["max_similarity"]), atol=1e-5, rtol=0)
    assert curriculum_levels(values) == NUMBERS["curriculum_tertiles_easy_to_hard"]


def test_the_golden_losses_and_gradients() -> None:
    trained, terms = golden_terms()
    for name, value in terms.items():
        assert float(value) == pytest.approx(NUMBERS[name], abs=1e-5), name
    total = total_loss(terms, TermWeights())
    assert float(total) == pytest.approx(NUMBERS["total_equal_weights"], abs=1e-5)
    (own,) = torch.autograd.grad(terms["cross_image"], trained["unsafe_image"], retain_graph=True)
    torch.testing.assert_close(own, tensor("grad_cross_image_V_unsafe"), atol=1e-5, rtol=0)
    total.backward()
    compared = 0
    for item, name in TRAINED.items():
        if (key := f"grad_total_{name}") in ARRAYS:
            torch.testing.assert_close(trained[item].grad, tensor(key), atol=1e-5, rtol=0)
            compared += 1
    assert compared == sum(key.startswith("grad_total_") for key in ARRAYS) > 0


def cosine(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return product / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


@pytest.mark.parametrize("seed", range(3))
def test_losses_against_loops(seed: int) -> None:
    torch.manual_seed(seed)
    items = list(TRAINED)
    trained = {item: torch.randn(5, 4, dtype=torch.float64) for item in items}
    frozen = {item: torch.randn(5, 4, dtype=torch.float64) for item in items}
    near, _ = nearest_safe(frozen["unsafe_text"], frozen["safe_text"])
    lists = {item: values.tolist() for item, values in frozen.items()}
    own = {item: values.tolist() for item, values in trained.items()}
    expected = dict.fromkeys(vars(TermWeights()), 0.0)
    for row in range(5):
        texts = [cosine(lists["unsafe_text"][row], text) for text in lists["safe_text"]]
        j = texts.index(max(texts))
        assert near[row] == j
        v, t = own["unsafe_image"][row], own["unsafe_text"][row]
        away = cosine(v, lists["unsafe_text"][row]) - cosine(v, lists["safe_text"][j])
        expected["cross_image"] += math.log(1 + math.exp(away)) / 5
        away = cosine(t, lists["unsafe_image"][row]) - cosine(t, lists["safe_image"][j])
        expected["cross_text"] += math.log(1 + math.exp(away)) / 5
        expected["uni_image"] -= cosine(v, lists["safe_image"][j]) / 5
        expected["uni_text"] -= cosine(t, lists["safe_text"][j]) / 5
        for kind in ("safe_image", "safe_text"):
            expected["preservation"] -= cosine(own[kind][row], lists[kind][row]) / 5
    chosen = {kind: frozen[f"safe_{kind}"][near] for kind in ("image", "text")}
    terms = loss_terms(trained, frozen, chosen)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert float(terms[name]) == pytest.approx(value, abs=1e-12), name
    weights = TermWeights(0.5, 2.0, 0.0, 1.5, 3.0)
    weighted = sum(getattr(weights, name) * value for name, value in expected.items())
    assert float(total_loss(terms, weights)) == pytest.approx(weighted, abs=1e-12)


def test_levels_of_rows_that_do_not_divide() -> None:
    levels = curriculum_levels(torch.tensor([0.1, 0.5, 0.3, 0.5, 0.2]))
    # Of equal rows the earlier one comes first.
    assert levels == [[1, 3], [2, 4], [0]]
    assert curriculum_levels(torch.tensor([0.1]))[0] == [0]


def test_retrieval_counts_equal_captions_as_right() -> None:
    one, two, three = torch.eye(3)
    rows = {
        "safe_text": torch.stack([one, one]),
        "safe_image": torch.stack([one, one]),
        "unsafe_text": torch.stack([two, one + 0.2 * three]),
        "unsafe_image": torch.stack([two, one + 0.2 * two]),
    }
    scores = retrieval_scores(rows, [("a", "x"), ("a", "y")])
    assert scores == {
        "unsafe_text_to_safe_image": 0.5,
        "safe_text_to_image": 1.0,
        "unsafe_image_to_safe_text": 0.5,
        "safe_image_to_text": 1.0,
    }
