"""SafeLoRA, SafeMERGE and RESTA against numbers of the released functions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from oneshot_lit.methods.posttuning.alignment_matrix import alignment_matrix
from oneshot_lit.methods.posttuning.resta import dare, resta
from oneshot_lit.methods.posttuning.safe_lora import number_threshold, project_pair, project_weight
from oneshot_lit.methods.posttuning.safe_merge import merge_changes, merge_factors, safety_cosine

GOLDEN = Path(__file__).with_name("golden")
DTYPES = [torch.float32, torch.float64]


class Golden:
    """The arrays of a folder as tensors, and its facts."""

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.arrays, self.dtype = np.load(GOLDEN / name / "data.npz"), dtype
        facts = GOLDEN / name / "data.json"
        self.facts: Any = json.loads(facts.read_text()) if facts.is_file() else {}

    def __call__(self, name: str) -> Tensor:
        return torch.tensor(self.arrays[name]).to(self.dtype)


def near(got: Tensor, expected: Tensor, atol: float | None = None) -> None:
    own = 1e-5 if expected.dtype == torch.float32 else 1e-6
    torch.testing.assert_close(got, expected, rtol=0, atol=atol or own)


@pytest.mark.parametrize("dtype", DTYPES)
def test_safe_lora(dtype: torch.dtype) -> None:
    golden = Golden("safelora", dtype)
    order = golden.facts["order"]
    pairs = {}
    for n, module in enumerate(order):
        aligned, base = golden(f"{module}.aligned"), golden(f"{module}.base")
        near(alignment_matrix(aligned, base), golden(f"{module}.C"))
        a, b = golden(f"{module}.A"), golden(f"{module}.B")
        pairs[module] = b, *project_pair(a, b, aligned, base)
        assert pairs[module][2] == pytest.approx(golden.facts["cos"][n], abs=2e-5)
    third = number_threshold((cosine for _, _, cosine in pairs.values()), 3)
    modes = {"thr0.5": (0.5, "thr_0_5"), "thr0.35": (0.35, "thr_0_35"), "num3": (third, "num_3")}
    for mode, (threshold, chosen) in modes.items():
        got = {m: p if c <= threshold else b for m, (b, p, c) in pairs.items()}
        assert [m for m in order if got[m] is pairs[m][1]] == golden.facts[f"projected_{chosen}"]
        for module in order:
            near(got[module], golden(f"{module}.B_{mode}"))


def test_safe_lora_where_alignment_changed_nothing() -> None:
    golden = Golden("safelora", torch.float32)
    module = golden.facts["zero_delta_module"]
    same = golden(f"{module}.base")
    projected, cosine = project_pair(golden(f"{module}.A"), golden(f"{module}.B"), same, same)
    assert math.isnan(cosine)
    assert projected.isnan().all()
    assert not cosine <= 1
    assert number_threshold([cosine, 0.5, 0.25], 1) == 0.25
    assert number_threshold([cosine], 3) == -math.inf
    assert number_threshold([0.2, 0.1], 9) == 0.2


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (4, 4)])
def test_whole_weights_and_pairs_agree(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    draw = lambda *size: torch.randn(*size, generator=generator, dtype=torch.float64)  # noqa: E731
    aligned, base, a, b = draw(*shape), draw(*shape), draw(3, shape[1]), draw(shape[0], 3)
    projected, cosine = project_pair(a, b, aligned, base)
    # The scaling of an adapter changes no cosine.
    weight, same = project_weight(aligned + 2 * b @ a, aligned, base)
    v = (aligned - base).numpy()
    c = v @ v.T / np.linalg.norm(v)
    expected = c @ b.numpy()
    np.testing.assert_allclose(projected, expected, atol=1e-12)
    np.testing.assert_allclose(weight, aligned.numpy() + 2 * expected @ a.numpy(), atol=1e-12)
    flat, other = (expected @ a.numpy()).ravel(), (b @ a).numpy().ravel()
    true = flat @ other / np.linalg.norm(flat) / np.linalg.norm(other)
    assert cosine == same == pytest.approx(true, abs=6e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_safe_merge(dtype: torch.dtype) -> None:
    golden = Golden("safemerge", dtype)
    s_f, s_g = golden.facts["scaling_ft"], golden.facts["scaling_safe"]
    merged = []
    for n, module in enumerate(golden.facts["order"]):
        a_f, b_f = golden(f"{module}.A_ft"), golden(f"{module}.B_ft")
        tuned = a_f, b_f, s_f
        safe = golden(f"{module}.A_safe"), golden(f"{module}.B_safe"), s_g
        v = golden(f"{module}.V")
        cosine = safety_cosine(a_f, b_f, v, torch.zeros_like(v))
        assert cosine == pytest.approx(golden.facts["cos"][n], abs=2e-5)
        below = cosine < golden.facts["tau"]
        merged += [module] if below else []
        weights = (0.8, 0.2) if below else (1.0, 0.0)
        a, b = merge_factors(tuned, safe, weights)
        near(a, golden(f"{module}.A_merged"))
        near(b, golden(f"{module}.B_merged"))
        near(b @ a, golden(f"{module}.dW_code"), 2e-6)
        a, b = merge_changes(tuned, safe, weights)
        assert len(a) == b.shape[1] == 2 * len(a_f)
        near(b @ a, golden(f"{module}.dW_paper"), 2e-6)
        keep = tuple(golden(f"{module}.{m}_mask_{w}") for m in "AB" for w in ("ft", "safe"))
        a, b = merge_factors(tuned, safe, weights, keep, golden.facts["dare"]["density"])
        near(a, golden(f"{module}.A_dare"))
        near(b, golden(f"{module}.B_dare"))
    assert merged == golden.facts["merged_tau_0_35"]
    same = torch.ones(4, 3, dtype=dtype)
    assert safety_cosine(torch.ones(2, 3), torch.ones(4, 2), same, same) == 0.0


@pytest.mark.parametrize("dtype", DTYPES)
def test_resta(dtype: torch.dtype) -> None:
    golden = Golden("resta", dtype)
    tuned, aligned = golden("theta_ft"), golden("theta_aligned")
    unaligned = golden("theta_unaligned")
    for gamma in (0.5, 1.0):
        near(resta(tuned, aligned, unaligned, gamma), golden(f"resta_{gamma}"))
    kept = dare(tuned - aligned, golden("drop_mask_sft"), 0.3)
    near(kept, golden("dare_delta_sft"))
    near(resta(aligned + kept, aligned, unaligned, 0.5), golden("resta_d_sft_0.5"))
    kept = dare(aligned - unaligned, golden("drop_mask_safety"), 0.3)
    near(kept, golden("dare_delta_safety"))
    near(tuned + 0.5 * kept, golden("resta_d_safety_0.5"))
