"""Cosines, overlaps and low-rank steps against explicit matrices in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from oneshot_lit.spectral import (
    compare_gradients,
    gradient_cosine,
    gradient_svd,
    rank_k_update,
    subspace_overlap,
    subspace_overlap_chance,
)


def factors(seed: int, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(tokens, 12, generator=generator).to(dtype),
        torch.randn(tokens, 9, generator=generator).to(dtype),
    )


def gradient(pair: tuple[Tensor, Tensor]) -> Tensor:
    return pair[1].double().T @ pair[0].double()


@pytest.mark.parametrize(("tokens", "others"), [(1, 1), (3, 7), (40, 2), (30, 30)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_cosine(tokens: int, others: int, dtype: torch.dtype) -> None:
    one, other = factors(0, tokens, dtype), factors(1, others, dtype)
    product = (gradient(one) * gradient(other)).sum()
    scale = gradient(one).norm() * gradient(other).norm()
    assert gradient_cosine(*one, *other) == pytest.approx(float(product / scale), abs=1e-12)


def test_cosine_of_itself_its_opposite_and_nothing() -> None:
    x, d = factors(0, 5)
    assert gradient_cosine(x, d, x, d) == pytest.approx(1, abs=1e-12)
    assert gradient_cosine(x, d, 3 * x, -2 * d) == pytest.approx(-1, abs=1e-12)
    assert math.isnan(gradient_cosine(x, d, x * 0, d))
    with pytest.raises(ValueError, match="different weights"):
        gradient_cosine(x, d, x[:, :4], d)


def basis(seed: int, features: int, k: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(features, k, generator=generator, dtype=torch.float64)).Q


def test_overlap_of_known_subspaces() -> None:
    axes = torch.eye(6, dtype=torch.float64)
    assert subspace_overlap(axes[:, :3], axes[:, :3]) == pytest.approx(1)
    assert subspace_overlap(axes[:, :3], axes[:, 3:]) == pytest.approx(0)
    assert subspace_overlap(axes[:, :3], axes[:, 2:4]) == pytest.approx(1 / 2)
    # The smaller inside the larger one counts as whole.
    assert subspace_overlap(axes[:, :1], axes[:, :4]) == pytest.approx(1)
    # A line at 30 degrees to another.
    line = torch.tensor([[math.cos(math.pi / 6)], [math.sin(math.pi / 6)], [0], [0], [0], [0]])
    assert subspace_overlap(line.double(), axes[:, :1]) == pytest.approx(0.75)


@pytest.mark.parametrize("seed", range(3))
def test_overlap_is_of_subspaces_not_of_their_bases(seed: int) -> None:
    u, v = basis(seed, 20, 4), basis(seed + 10, 20, 6)
    turned = u @ basis(seed + 20, 4, 4)
    assert subspace_overlap(turned, v) == pytest.approx(subspace_overlap(u, v), abs=1e-12)
    assert subspace_overlap(v, u) == pytest.approx(subspace_overlap(u, v), abs=1e-12)
    principal = torch.linalg.svdvals(u.T @ v).square().sum() / 4
    assert subspace_overlap(u, v) == pytest.approx(float(principal), abs=1e-12)


def test_chance_level_is_the_mean_over_random_subspaces() -> None:
    measured = [subspace_overlap(basis(n, 30, 3), basis(n + 5000, 30, 5)) for n in range(400)]
    mean = sum(measured) / len(measured)
    # The standard deviation of one draw is about 0.05, that of the mean 0.0025.
    assert mean == pytest.approx(subspace_overlap_chance(3, 5, 30), abs=0.012)
    assert subspace_overlap_chance(30, 4, 30) == 1


@pytest.mark.parametrize(
    ("u", "v"),
    [
        (torch.ones(5, 2), torch.eye(5)[:, :2]),
        (torch.eye(5)[:, :2], torch.eye(4)[:, :2]),
        (torch.eye(5)[:, :0], torch.eye(5)),
        (torch.ones(5), torch.eye(5)),
    ],
)
def test_what_is_no_pair_of_bases(u: Tensor, v: Tensor) -> None:
    with pytest.raises(ValueError, match=r"orthonormal|subspaces"):
        subspace_overlap(u, v)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("step", [0.0, 0.25, torch.tensor(3.0)])
def test_rank_k_update_is_the_step_along_the_leading_directions(k: int, step) -> None:
    pair = factors(0, 5)
    u, s, v = torch.linalg.svd(gradient(pair))
    b, a = rank_k_update(*gradient_svd(*pair, k), step)
    assert (b.shape, a.shape) == ((9, k), (k, 12))
    expected = -float(step) * (u[:, :k] * s[:k]) @ v[:k]
    torch.testing.assert_close((b @ a).double(), expected, atol=1e-4, rtol=1e-5)
    # Shared evenly between the factors.
    torch.testing.assert_close(b.norm(), a.norm(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("tokens", "others"), [(7, 12), (40, 5), (60, 70), (1, 1)])
@pytest.mark.parametrize("k", [1, 3, 20])
def test_comparison_against_explicit_gradients(tokens: int, others: int, k: int) -> None:
    generator = torch.Generator().manual_seed(tokens)
    x, d = (torch.randn(tokens, n, generator=generator) for n in (30, 24))
    y, e = (torch.randn(others, n, generator=generator) for n in (30, 24))
    # Not independent: half of the other gradient is the one's own.
    if tokens <= others:
        y[:tokens], e[:tokens] = x, d
    one, other = d.double().T @ x.double(), e.double().T @ y.double()
    found = compare_gradients(x, d, y, e, k)
    ranks = [min(k, n, 24) for n in (tokens, others)]
    u, v = (torch.linalg.svd(g).U[:, :r] for g, r in zip((one, other), ranks, strict=True))
    assert found.overlap == pytest.approx(float((u.T @ v).norm() ** 2 / min(ranks)), abs=1e-4)
    assert found.overlap_chance == pytest.approx(max(ranks) / 24)
    cosine = float((one * other).sum() / one.norm() / other.norm())
    assert found.cosine == pytest.approx(cosine, abs=1e-6)


def test_comparison_counts_no_round_off_as_a_direction() -> None:
    """A gradient of rank one has one direction, however many tokens repeat it."""
    generator = torch.Generator().manual_seed(0)
    x, d = torch.randn(1, 30, generator=generator), torch.randn(1, 24, generator=generator)
    many = torch.linspace(0.1, 1, 9)[:, None]
    found = compare_gradients(many * x, d.expand(9, -1), x, -d, 5)
    assert found.overlap == pytest.approx(1, abs=1e-5)
    assert found.overlap_chance == pytest.approx(1 / 24)
    assert found.cosine == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("tokens", [0, 3])
def test_zero_gradient_compares_to_nothing(tokens: int) -> None:
    x, d = torch.ones(tokens, 5), torch.zeros(tokens, 4)
    found = compare_gradients(x, d, torch.ones(2, 5), torch.ones(2, 4))
    assert all(value != value for value in found)
