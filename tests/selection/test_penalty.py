"""The penalty form on quadratic problems whose answers are known in closed form, in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.select.penalty import (
    PenaltySettings,
    logits_gradient,
    outer_step,
)


class Quadratic:
    """l_i = (theta - a_i)^T A_i (theta - a_i) / 2, f = |theta - target|^2 / 2; solved exactly."""

    def __init__(self, candidates: int, size: int, seed: int, *, alike: bool = False) -> None:
        draw = torch.Generator().manual_seed(seed)
        options = {"generator": draw, "dtype": torch.float64}
        self.points = torch.randn(candidates, size, **options)
        spread = torch.randn(candidates, size, size, **options)
        eye = torch.eye(size, dtype=torch.float64)
        self.curves = eye + (0.0 if alike else 0.3) * spread @ spread.mT / size
        self.target = torch.randn(size, **options)
        self.theta = self.omega = torch.zeros(size, dtype=torch.float64)

    def _normal(self, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        matrix = torch.einsum("n,nij->ij", weights, self.curves)
        return matrix, torch.einsum("n,nij,nj->i", weights, self.curves, self.points)

    def solution(self, weights: torch.Tensor) -> torch.Tensor:
        return torch.linalg.solve(*self._normal(weights))

    def f(self, theta: torch.Tensor) -> torch.Tensor:
        return (theta - self.target).square().sum() / 2

    def lower_step(self, weights: torch.Tensor) -> None:
        self.omega = self.solution(weights)

    def upper_step(self, weights: torch.Tensor, gamma: float) -> float:
        before = float(self.f(self.theta))
        matrix, right = self._normal(weights)
        eye = torch.eye(len(matrix), dtype=torch.float64)
        self.theta = torch.linalg.solve(eye + gamma * matrix, self.target + gamma * right)
        return before

    def losses(self, theta: torch.Tensor) -> torch.Tensor:
        away = theta - self.points
        return torch.einsum("ni,nij,nj->n", away, self.curves, away) / 2

    def candidate_losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.losses(self.theta), self.losses(self.omega)

    def follow(self) -> None:
        self.omega = self.theta


class Lagging(Quadratic):
    """Its omega takes steps that are far too small."""

    def lower_step(self, weights: torch.Tensor) -> None:
        self.omega = self.omega + 0.01 * (self.solution(weights) - self.omega)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_gradient_against_finite_differences(seed: int, decay: float) -> None:
    problem = Quadratic(candidates=7, size=4, seed=seed)
    logits = torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def objective(x: torch.Tensor) -> torch.Tensor:
        weights = torch.softmax(x, 0)
        return problem.f(problem.solution(weights)) + decay * weights.square().sum()

    step = 1e-5
    expected = torch.stack(
        [
            (objective(logits + step * e) - objective(logits - step * e)) / (2 * step)
            for e in torch.eye(7, dtype=torch.float64)
        ]
    )
    weights, gamma = torch.softmax(logits, 0), 1e5
    problem.lower_step(weights)
    problem.upper_step(weights, gamma)
    upper, lower = problem.candidate_losses()
    computed = logits_gradient(weights, upper, lower, gamma, decay)
    assert (computed - expected).norm() <= 1e-3 * expected.norm()


@pytest.mark.parametrize("m", [1, 3])
@pytest.mark.parametrize("seed", range(4))
def test_the_optimal_subset_is_found(m: int, seed: int) -> None:
    # More dimensions than candidates: one subset alone reaches the target.
    problem = Quadratic(candidates=9, size=12, seed=seed, alike=True)
    subset = torch.randperm(9, generator=torch.Generator().manual_seed(seed))[:m]
    problem.target = problem.points[subset].mean(0)

    def reached(chosen: tuple[int, ...]) -> float:
        weights = torch.zeros(9, dtype=torch.float64)
        weights[list(chosen)] = 1 / m
        return float(problem.f(problem.solution(weights)))

    best = min(itertools.combinations(range(9), m), key=reached)
    settings = PenaltySettings(steps=400, lower_steps=1, rate=2.0, gamma=0.1, last_gamma=20.0)
    logits = torch.zeros(9, dtype=torch.float64)
    records = []
    for number in range(settings.steps):
        logits, record = outer_step(problem, logits, number, settings)
        records.append(record)
    assert sorted(logits.topk(m).indices.tolist()) == sorted(best)
    equal = torch.full((9,), 1 / 9, dtype=torch.float64)
    here, there = (problem.f(problem.solution(w)) for w in (torch.softmax(logits, 0), equal))
    assert here < 0.2 * there
    assert all(record.gap >= 0 for record in records)
    assert records[0].entropy == pytest.approx(math.log(9))
    assert records[-1].entropy < records[0].entropy
    assert records[-1].gamma == pytest.approx(20.0)


def test_an_omega_that_lags_behind_theta_follows_it() -> None:
    problem = Lagging(candidates=5, size=3, seed=1)
    settings = PenaltySettings(steps=60, gamma=1.0, last_gamma=50.0, decay=0.1)
    logits = torch.zeros(5, dtype=torch.float64)
    followed = 0
    for number in range(settings.steps):
        weights = torch.softmax(logits, 0)
        omega = problem.omega
        for _ in range(settings.lower_steps):
            omega = omega + 0.01 * (problem.solution(weights) - omega)
        behind = float(weights @ problem.losses(omega))
        found, record = outer_step(problem, logits, number, settings)
        if behind > record.g:
            followed += 1
            assert torch.equal(problem.omega, problem.theta)
            assert (record.v, record.gap) == (record.g, 0.0)
            # What is left of the gradient is lambda's.
            pull = logits_gradient(weights, record.g, record.g, 0.0, settings.decay)
            torch.testing.assert_close(found, logits - settings.rate * pull)
        else:
            assert record.v == pytest.approx(behind)
            assert record.gap >= 0
        logits = found
    assert 0 < followed < settings.steps


def test_softmax_chain_against_autograd() -> None:
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    direction = torch.randn(6, dtype=torch.float64)
    weights = torch.softmax(logits, 0)
    (weights @ direction).backward()
    torch.testing.assert_close(
        logits_gradient(weights.detach(), direction, 0 * direction, 1.0, 0.0), logits.grad
    )


def test_what_is_not_finite_changes_nothing() -> None:
    problem = Quadratic(candidates=3, size=2, seed=0)
    problem.points[1] = math.nan
    logits = torch.zeros(3, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="step 0 is not finite"):
        outer_step(problem, logits, 0, PenaltySettings())
    assert torch.equal(logits, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("lower_steps", 0),
        ("rate", 0.0),
        ("rate", math.inf),
        ("gamma", 0.0),
        ("gamma", math.nan),
        ("last_gamma", -1.0),
        ("decay", -0.1),
        ("decay", math.nan),
    ],
)
def test_numbers_that_no_step_can_be_taken_with(key: str, value: float) -> None:
    with pytest.raises(OneShotError, match=rf"model\.penalty\.{key} must be"):
        PenaltySettings(**{key: value})
