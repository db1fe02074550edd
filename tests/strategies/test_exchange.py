"""Factors of two real processes against the mean of the explicit gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from exchanges import SCALE, explicit, recorded, stand_in
from processes import in_processes

from oneshot_lit.strategies import exchange

CHUNKS = {"few bytes": 1, "some": 300, "all": 2**28}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exchange")
    cases = [
        {"what": "collect", "root": str(root / name), "chunk_bytes": size}
        for name, size in CHUNKS.items()
    ]
    cases.append({"what": "broken", "root": str(root / "broken")})
    in_processes(root, "exchanges", "run", cases, seconds=90)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", CHUNKS)
def test_mean_of_both_ranks(name: str, folder: Path) -> None:
    results = [torch.load(folder / name / f"{rank}.pt") for rank in range(2)]
    owned = [set(result["gradients"]) for result in results]
    # Each matrix is decomposed once, and both processes have some.
    assert not owned[0] & owned[1]
    assert all(owned)
    one, other = explicit(0), explicit(1)
    assert owned[0] | owned[1] == set(one)
    for name_, gradient in (results[0]["gradients"] | results[1]["gradients"]).items():
        expected = (one[name_] + other.get(name_, 0)) / (2 * SCALE)
        if name_ == "embed":
            expected = expected[expected.ne(0).any(-1)]
        assert gradient.shape == expected.shape
        assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-6), name_


@pytest.mark.slow
def test_rounds_are_bounded(folder: Path) -> None:
    rounds = {n: torch.load(folder / n / "0.pt")["rounds"] for n in CHUNKS}
    assert rounds["all"] == 1
    # A bundle each: q with k, v, embed, half, expert, and an empty message.
    assert rounds["few bytes"] == 6
    assert 1 < rounds["some"] < rounds["few bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHUNKS)
def test_inputs_stay_shared(name: str, folder: Path) -> None:
    shared = [torch.load(folder / name / f"{rank}.pt")["shared"] for rank in range(2)]
    assert sorted(shared) == [[], [True]]


@pytest.mark.slow
def test_nan_on_one_rank_is_an_error_on_both(folder: Path) -> None:
    for rank in range(2):
        error = (folder / "broken" / f"error{rank}").read_text()
        assert error == "GradientRank: step 7: the gradient holds NaN or infinity."


def test_one_process_copies_nothing() -> None:
    factors = recorded(0)
    (found,) = exchange.global_factors(stand_in(), factors, 1.0)
    assert found["q"][0] is factors["k"][0]
    assert found["q"][1] is factors["q"][1]
    for name, gradient in explicit(0).items():
        right, left = found[name]
        expected = gradient[gradient.ne(0).any(-1)] if name == "embed" else gradient
        assert torch.allclose(left.double().mT @ right.double(), expected, atol=1e-6), name
