"""CER, effective rank and stable rank, against numpy's words for their formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from oneshot_lit.spectral import cumulative_energy_ratio, effective_rank, stable_rank, summarise

# float32 inputs are widened, so only the double-precision sums may differ.
CLOSE = pytest.approx


def spectrum(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=rng.integers(2, 40)) * 10.0 ** rng.integers(-8, 6)
    return np.sort(values)[::-1].astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_cumulative_energy_ratio(seed: int) -> None:
    s = spectrum(seed)
    energy = s.astype(np.float64) ** 2
    for k in range(1, len(s) + 3):
        expected = energy[:k].sum() / energy.sum()
        got = cumulative_energy_ratio(torch.from_numpy(s.copy()), k)
        assert got == CLOSE(expected, rel=1e-12)
        # In any order.
        assert cumulative_energy_ratio(torch.from_numpy(s[::-1].copy()), k) == CLOSE(got)
    assert cumulative_energy_ratio(torch.from_numpy(s.copy()), len(s)) == CLOSE(1.0)


@pytest.mark.parametrize("seed", range(8))
def test_effective_rank(seed: int) -> None:
    s = spectrum(seed)
    p = s.astype(np.float64) / s.astype(np.float64).sum()
    expected = np.exp(-(p * np.log(p)).sum())
    got = effective_rank(torch.from_numpy(s.copy()))
    assert got == CLOSE(expected, rel=1e-10)
    assert 1 <= got <= len(s)
    # Zeros are no further directions.
    padded = np.concatenate([s, np.zeros(3, dtype=np.float32)])
    assert effective_rank(torch.from_numpy(padded)) == CLOSE(got)


@pytest.mark.parametrize("seed", range(8))
def test_stable_rank_is_that_of_the_matrix(seed: int) -> None:
    matrix = np.random.default_rng(seed).normal(size=(9, 6))
    s = np.linalg.svd(matrix, compute_uv=False)
    expected = np.linalg.norm(matrix, "fro") ** 2 / np.linalg.norm(matrix, 2) ** 2
    got = stable_rank(torch.from_numpy(s))
    assert got == CLOSE(expected, rel=1e-10)
    assert 1 <= got <= 6


@pytest.mark.parametrize("count", [1, 4])
def test_equal_values(count: int) -> None:
    flat = torch.full((count,), 1e-20)
    assert effective_rank(flat) == CLOSE(count)
    assert stable_rank(flat) == CLOSE(count)
    assert cumulative_energy_ratio(flat, 1) == CLOSE(1 / count)


@pytest.mark.parametrize("zero", [torch.zeros(5), torch.zeros(0)])
def test_zero_matrix(zero: torch.Tensor) -> None:
    assert effective_rank(zero) == 0
    assert stable_rank(zero) == 0
    assert math.isnan(cumulative_energy_ratio(zero, 1))


def test_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="k must be at least 1"):
        cumulative_energy_ratio(torch.ones(3), 0)


def test_many_at_once_equal_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    spectra = [torch.rand(n, generator=generator) for n in (1, 7, 30, 3)]
    spectra += [torch.zeros(4), torch.zeros(0), torch.tensor([2.0, 0.0])]
    found = summarise(spectra, [1, 5, 40])
    assert list(found) == [
        "cer_1",
        "cer_5",
        "cer_40",
        "effective_rank",
        "stable_rank",
        "frobenius_norm",
    ]
    for n, values in enumerate(spectra):
        for k in (1, 5, 40):
            one = cumulative_energy_ratio(values, k)
            assert found[f"cer_{k}"][n] == pytest.approx(one, rel=1e-12, nan_ok=True)
        assert found["effective_rank"][n] == pytest.approx(effective_rank(values), rel=1e-12)
        stable = stable_rank(values) if len(values) else 0.0
        assert found["stable_rank"][n] == pytest.approx(stable, rel=1e-12)
        assert found["frobenius_norm"][n] == pytest.approx(float(values.double().norm()), rel=1e-12)


def test_no_spectra_have_no_numbers() -> None:
    assert summarise([], [1]) == {
        "cer_1": [],
        "effective_rank": [],
        "stable_rank": [],
        "frobenius_norm": [],
    }
    assert summarise([torch.zeros(0)], [1])["effective_rank"] == [0.0]
