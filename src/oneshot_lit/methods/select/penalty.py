"""The bilevel selection of instances in its penalty form: pure steps, independent of the model.

The problem (arXiv 2601.01887, section on instance selection): weights w of N candidates are chosen
so that a model trained on them, theta(w) = argmin g(w, .) with g(w, theta) = sum_i w_i l_i(theta),
has a low f(theta(w)) + lambda ||w||^2. The paper calls its algorithm first-order and penalty-based
and gives no more; this is V-PBGD (Shen & Chen 2023, "On Penalty-based Bilevel Gradient Descent"):

    min over w, theta of  f(theta) + lambda ||w||^2 + gamma (g(w, theta) - v(w)),

with v(w) = min over omega of g(w, omega), kept up to date by a second copy omega. By the envelope
theorem its gradient is d/dw_i = 2 lambda w_i + gamma (l_i(theta) - l_i(omega)), which needs no
second derivative. w = softmax(x) stays on the simplex.

The envelope theorem holds at the minimum. If theta has a lower g than omega, omega is not at the
minimum; omega then continues from theta, the better of the two, so that g - v is never negative.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError


@dataclass(frozen=True)
class PenaltySettings:
    """Steps and step sizes of the penalty problem.

    Args:
        steps: Outer steps.
        lower_steps: Steps of omega before each step of theta.
        rate: Step size of the logits x of the weights.
        decay: lambda, the factor of ||w||^2. On the simplex a positive one favours equal weights.
        gamma: The penalty's factor at the first step.
        last_gamma: The same at the last step; between them it grows by a constant factor.

    Raises:
        OneShotError: for a count below 1, a factor that is not above 0, or a negative decay.
    """

    steps: int = 50
    lower_steps: int = 2
    rate: float = 1.0
    decay: float = 0.0
    gamma: float = 0.1
    last_gamma: float = 10.0

    def __post_init__(self) -> None:
        """Refuse numbers that are out of range."""
        for key, least in {"steps": 1, "lower_steps": 1, "decay": 0}.items():
            if not least <= vars(self)[key] < math.inf:
                raise OneShotError(
                    f"model.penalty.{key} must be finite and at least {least}, not "
                    f"{vars(self)[key]}."
                )
        for key in ("rate", "gamma", "last_gamma"):
            if not 0 < vars(self)[key] < math.inf:
                raise OneShotError(
                    f"model.penalty.{key} must be above 0 and finite, not {vars(self)[key]}."
                )

    def gamma_at(self, step: int) -> float:
        """Return gamma of an outer step, counted from 0."""
        if self.steps < 2:
            return self.last_gamma
        part = min(step, self.steps - 1) / (self.steps - 1)
        return self.gamma * (self.last_gamma / self.gamma) ** part


@dataclass(frozen=True)
class PenaltyRecord:
    """The record of one outer step.

    Attributes:
        step: The step, counted from 0.
        gamma: Its penalty factor.
        f: The upper objective at theta, before the step.
        g: sum_i w_i l_i(theta).
        v: The estimate of the lower level's optimum: sum_i w_i l_i(omega), or g if that is lower.
        gap: g - v; never below 0.
        entropy: Entropy of the weights, in nats; ln N if they are equal.
        best: Position of the candidate with the largest weight.
        weight: That weight.
    """

    step: int
    gamma: float
    f: float
    g: float
    v: float
    gap: float
    entropy: float
    best: int
    weight: float


def logits_gradient(
    weights: Tensor, upper_losses: Tensor, lower_losses: Tensor, gamma: float, decay: float
) -> Tensor:
    """Return the gradient of the penalty objective with respect to the logits of the weights.

    That is ``(diag(w) - w w^T) d`` with ``d_i = 2 lambda w_i + gamma (l_i(theta) - l_i(omega))``.

    Args:
        weights: w, (candidates,).
        upper_losses: l_i(theta), (candidates,).
        lower_losses: l_i(omega), (candidates,).
        gamma: The penalty's factor.
        decay: lambda.
    """
    gradient = 2 * decay * weights + gamma * (upper_losses - lower_losses)
    return weights * (gradient - (weights * gradient).sum())


def outer_step(
    problem: Any, logits: Tensor, step: int, settings: PenaltySettings
) -> tuple[Tensor, PenaltyRecord]:
    """Take one outer step: omega, then theta, then the weights.

    Args:
        problem: The two copies, as `TwoCopies`, which are stepped in place.
        logits: x, (candidates,).
        step: Which step, counted from 0; decides gamma.
        settings: The step sizes.

    Returns:
        The new logits, (candidates,), and the record of the step.

    Raises:
        FloatingPointError: if a loss or the objective is not finite; `logits` is unchanged.
    """
    weights, gamma = torch.softmax(logits, 0), settings.gamma_at(step)
    for _ in range(settings.lower_steps):
        problem.lower_step(weights)
    f = problem.upper_step(weights, gamma)
    upper, lower = (each.to(logits) for each in problem.candidate_losses())
    g, v = float(weights @ upper), float(weights @ lower)
    if not all(map(math.isfinite, (f, g, v))):
        raise FloatingPointError(f"step {step} is not finite (f {f}, g {g}, v {v})")
    if v > g:
        problem.follow()
        v, lower = g, upper
    gradient = logits_gradient(weights, upper, lower, gamma, settings.decay)
    new_logits = logits - settings.rate * gradient
    best = int(weights.argmax())
    entropy = float(torch.special.entr(weights).sum())
    record = PenaltyRecord(step, gamma, f, g, v, g - v, entropy, best, float(weights[best]))
    return new_logits, record
