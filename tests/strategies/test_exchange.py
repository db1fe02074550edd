"""Factors of two real processes against the mean of the explicit gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exchanges import NAMES, SCALE, explicit, recorded, stand_in
from processes import in_processes

from oneshot_lit.strategies import exchange


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exchange")
    cases = [{"what": what, "root": str(root / what)} for what in ("collect", "broken")]
    in_processes(root, "exchanges", "run", cases, seconds=90)
    return root


@pytest.mark.slow
def test_mean_of_both_ranks(folder: Path) -> None:
    owned = [torch.load(folder / "collect" / f"{rank}.pt") for rank in range(2)]
    # Each matrix is decomposed once, and both processes have some.
    assert not set(owned[0]) & set(owned[1])
    assert all(owned)
    one, other = explicit(0), explicit(1)
    gathered = owned[0] | owned[1]
    assert set(gathered) == set(one)
    for name, gradient in gathered.items():
        expected = (one[name] + other.get(name, 0)) / (2 * SCALE)
        if name == "embed":
            expected = expected[expected.ne(0).any(-1)]
        assert gradient.shape == expected.shape
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6), name


@pytest.mark.slow
def test_nan_on_one_rank_is_an_error_on_both(folder: Path) -> None:
    for rank in range(2):
        error = (folder / "broken" / f"error{rank}").read_text()
        assert error == "GradientRank: step 7: the gradient holds NaN or infinity."


def test_one_process_copies_nothing() -> None:
    factors = recorded(0)
    joined = dict(exchange.full_factors(stand_in(), factors, NAMES, 1.0))
    assert joined["q"][0] is factors["k"][0]
    assert joined["q"][1] is factors["q"][1]
    for name, gradient in explicit(0).items():
        right, left = joined[name]
        expected = gradient[gradient.ne(0).any(-1)] if name == "embed" else gradient
        assert torch.allclose(left.double().mT @ right.double(), expected, atol=1e-6), name
