"""The guarded projection against its definition in float64."""

from __future__ import annotations

import pytest
import torch

from oneshot_lit.spectral import guarded_inputs


def by_definition(x: torch.Tensor, guard: torch.Tensor, strength: float) -> torch.Tensor:
    moment = guard.double().T @ guard.double()
    moment = moment / moment.diagonal().mean()
    identity = torch.eye(len(moment), dtype=torch.float64)
    return x.double() @ torch.linalg.inv(identity + moment / strength)


@pytest.mark.parametrize("guard_tokens", [3, 39, 40, 41, 300])
@pytest.mark.parametrize("strength", [1e-3, 0.1, 3.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_definition(guard_tokens: int, strength: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(guard_tokens)
    x = torch.randn(7, 40, generator=generator).to(dtype)
    # A common direction that dominates, as the mean of hidden states does.
    guard = torch.randn(guard_tokens, 40, generator=generator) + 5
    guard = guard.to(dtype)
    found = guarded_inputs(x, guard, strength)
    expected = by_definition(x, guard, strength)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    assert (found.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("guard_tokens", "features"), [(30, 600), (700, 600)])
def test_several_lambdas_and_counted_tokens(guard_tokens: int, features: int) -> None:
    """Wider than one block of the product."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, features, generator=generator)
    guard = torch.randn(guard_tokens, features, generator=generator) + 1
    counts = torch.randint(1, 5, (guard_tokens,), generator=generator)
    made = guarded_inputs(x, guard, [0.03, 1.0], counts)
    assert made.shape == (2, 5, features)
    for each, strength in zip(made, (0.03, 1.0), strict=True):
        expected = by_definition(x, guard.repeat_interleave(counts, 0), strength)
        assert (each.double() - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_what_the_guard_uses_vanishes_and_the_rest_stays() -> None:
    basis = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0))).Q
    guard = torch.randn(50, 4, generator=torch.Generator().manual_seed(1)) @ basis[:4]
    found = guarded_inputs(basis, guard, 1e-4)
    assert found[:4].norm() < 1e-3
    assert torch.allclose(found[4:], basis[4:], atol=1e-5)


def test_no_guard_changes_nothing() -> None:
    x = torch.randn(3, 5)
    assert torch.equal(guarded_inputs(x, torch.zeros(2, 5), 1.0), x)
    assert torch.equal(guarded_inputs(x, torch.zeros(0, 5), 1.0), x)


@pytest.mark.parametrize(
    ("guard", "strength", "said"),
    [
        (torch.ones(2, 4), 1.0, "one layer"),
        (torch.ones(2, 5), 0.0, "above 0"),
        (torch.ones(2, 5), float("nan"), "above 0"),
        (torch.full((2, 5), float("nan")), 1.0, "NaN"),
    ],
)
def test_what_makes_no_sense(guard: torch.Tensor, strength: float, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        guarded_inputs(torch.ones(3, 5), guard, strength)
