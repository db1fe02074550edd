"""Merging against numbers of mergekit, and against float64 on other inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oneshot_lit.methods.posttuning.merging import (
    drop_and_rescale,
    linear,
    model_stock,
    slerp,
    ties,
    trim,
)

GOLDEN = Path(__file__).with_name("golden") / "merging" / "data.npz"
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float32", "float64"])
def golden(request: pytest.FixtureRequest) -> Any:
    data = np.load(GOLDEN)
    return lambda name: torch.tensor(data[name]).to(request.param)


def near(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[expected.dtype] / 2)


@pytest.mark.parametrize("weight", [0.2, 0.4, 0.6, 0.8])
def test_lines_and_arcs(golden: Any, weight: float) -> None:
    near(linear(golden("theta0"), golden("ft1"), weight), golden(f"linear_{weight}"))
    arc, straight = slerp(golden("theta0"), golden("ft1"), weight)
    near(arc, golden(f"slerp_{weight}"))
    assert not straight


def test_arcs_between_far_zero_and_parallel_tensors(golden: Any) -> None:
    far, straight = slerp(golden("slerp_wide_v0"), golden("slerp_wide_v1"), 0.4)
    near(far, golden("slerp_wide_0.4"))
    assert not straight
    wide_v1 = golden("slerp_wide_v1")
    near(slerp(torch.zeros_like(wide_v1), wide_v1, 0.4)[0], golden("slerp_zero_0.4"))
    line, straight = slerp(golden("theta0"), golden("slerp_colinear_v1"), 0.4)
    near(line, golden("slerp_colinear_0.4"))
    assert straight


@pytest.mark.parametrize("weight", [0.4, 0.6])
def test_dare(golden: Any, weight: float) -> None:
    start, mask = golden("theta0"), golden(f"dare_linear_{weight}_mask")
    delta = golden("ft1") - start
    near(start + weight * drop_and_rescale(delta, mask, 0.5, "l1"), golden(f"dare_linear_{weight}"))
    near(
        start + weight * drop_and_rescale(delta, mask, 0.5, "density"),
        golden(f"dare_linear_{weight}_over_density"),
    )


def test_dare_without_rescaling_and_of_nothing(golden: Any) -> None:
    start, mask = golden("theta0"), golden("dare_linear_0.6_mask")
    plain = drop_and_rescale(golden("ft1") - start, mask, 0.5, "none")
    near(start + 0.6 * plain, golden("dare_linear_0.6_norescale"))
    assert not drop_and_rescale(torch.zeros(2, 3), torch.ones(2, 3), 0.5, "l1").any()


def test_ties_and_task_arithmetic(golden: Any) -> None:
    start, models = golden("theta0"), [golden(f"ft{n}") for n in (1, 2, 3)]
    near(ties(start, models[:1], [0.6], 0.4, normalize=True), golden("ties1"))
    near(ties(start, models[:1], [0.6], 0.4), golden("ties1_nonorm"))
    near(ties(start, models, [1.0] * 3, 0.4, normalize=True), golden("ties3"))
    near(linear(start, models[0], 0.6), golden("task_arithmetic_0.6"))


def test_model_stock(golden: Any) -> None:
    start, models = golden("theta0"), [golden(f"ft{n}") for n in (1, 2, 3)]
    for count in (2, 3):
        merged, share = model_stock(start, models[:count])
        near(merged, golden(f"model_stock_{count}"))
        assert share == pytest.approx(float(golden(f"model_stock_{count}_t")), abs=1e-6)
    near(model_stock(start, models, filter_wise=True)[0], golden("model_stock_3_filterwise"))
    with pytest.raises(ValueError, match="at least two"):
        model_stock(start, models[:1])


@pytest.mark.parametrize("shape", [(7,), (1, 9), (5, 4, 3)])
def test_other_shapes_against_numpy(shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a = rng.normal(size=shape)
    tuned = [a + 0.3 * rng.normal(size=shape) for _ in range(3)]
    start, models = torch.tensor(a), [torch.tensor(each) for each in tuned]
    cosine = a.ravel() @ tuned[0].ravel() / np.linalg.norm(a) / np.linalg.norm(tuned[0])
    o = np.arccos(cosine)
    arc = (np.sin(0.7 * o) * a + np.sin(0.3 * o) * tuned[0]) / np.sin(o)
    np.testing.assert_allclose(slerp(start, models[0], 0.3)[0], arc, atol=1e-12)
    deltas = [each - a for each in tuned]
    kept = []
    for delta in deltas:
        order = np.argsort(-np.abs(delta).ravel())[: int(0.3 * a.size)]
        mask = np.zeros(a.size)
        mask[order] = 1
        kept.append(delta * mask.reshape(shape))
        np.testing.assert_array_equal(trim(torch.tensor(delta), 0.3), kept[-1])
    weights = [0.5, 1.0, 2.0]
    total = sum(w * d for w, d in zip(weights, kept, strict=True))
    sign = np.where(total >= 0, 1, -1)
    agreed = [np.where(np.sign(d) == sign, d, 0) for d in kept]
    over = sum(w * (d != 0) for w, d in zip(weights, agreed, strict=True))
    merged = sum(w * d for w, d in zip(weights, agreed, strict=True)) / np.where(over, over, 1)
    got = ties(start, models, weights, 0.3, normalize=True)
    np.testing.assert_allclose(got, a + merged, atol=1e-12)
