"""Spectra of full gradients; the processes share the decompositions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError
from oneshot_lit.spectral import (
    GradientComparison,
    many_gradient_singular_values,
    matrix_singular_values,
)
from oneshot_lit.strategies import exchange, gradients

Compare = Callable[[Mapping[str, exchange.Pair]], Mapping[str, GradientComparison]]


class Measured(NamedTuple):
    """What was measured of one gradient.

    Attributes:
        values: Singular values, (n,), descending, on the CPU; none where the step left no gradient.
        comparison: How near it is to the reference, or None without one.
    """

    values: Tensor
    comparison: GradientComparison | None = None


def shared_spectra(
    trainer: Trainer,
    parameters: Mapping[str, nn.Parameter],
    factors: Mapping[str, exchange.Pair],
    mode: str | None = None,
    compare: Compare | None = None,
) -> dict[str, Measured]:
    """Return the singular values of each full gradient; every process must call it.

    Args:
        trainer: The running trainer, between a backward pass and the optimiser step.
        parameters: Name -> 2-D parameter; the same names on all processes.
        factors: Name -> (right, left) of this process, as `FactorRecorder.factors`.
        mode: ``factors`` never puts a whole gradient together, ``gradient`` always.
        compare: Factors of full gradients -> their comparisons with a reference; called on the
            process that decomposes them.

    Returns:
        Name -> what was measured, the same on all processes.

    Raises:
        OneShotError: on all processes, if a gradient holds NaN or cannot be read.
    """
    work = _Work(trainer)
    # The factors of full gradients are available only here, those of a matrix on one process.
    scale = gradients.loss_scale(trainer)
    for some in exchange.global_factors(trainer, factors, scale, list(parameters)):
        work.do(lambda some=some: _of_factors(some, compare))  # type: ignore[misc]
    measured = work.gathered()
    if mode != "factors":
        missing = [name for name in parameters if name not in measured]
        whole = [*missing, *_uncovered(trainer, parameters, measured)]
        for n, name in enumerate(whole):
            gradient = gradients.full_gradient(trainer, parameters[name])
            if gradient is not None and n % trainer.world_size == trainer.global_rank:
                work.do(lambda n=name, g=gradient: {n: Measured(matrix_singular_values(g).cpu())})  # type: ignore[misc]
        measured |= work.gathered()
    elif uncovered := _uncovered(trainer, parameters, measured):
        raise OneShotError(
            f"GradientRank: {uncovered[0]} is used outside its layer, too, so its factors are not "
            "the whole gradient; leave mode out."
        )
    return {name: measured.get(name, Measured(torch.zeros(0))) for name in parameters}


def _of_factors(
    factors: Mapping[str, exchange.Pair], compare: Compare | None
) -> dict[str, Measured]:
    values = many_gradient_singular_values(list(factors.values()))
    near = {} if compare is None else compare(factors)
    return {n: Measured(v.cpu(), near.get(n)) for n, v in zip(factors, values, strict=True)}


class _Work:
    """Results and errors of this process, kept until all are done: none may stop alone."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._results: dict[str, Measured] = {}
        self._error: str | None = None

    def do(self, compute: Callable[[], dict[str, Measured]]) -> None:
        """Keep what `compute` returns; of all errors keep the first."""
        try:
            self._results |= compute()
        except (ValueError, RuntimeError) as error:
            # Also what LAPACK and a full memory raise: the others would wait for this process.
            self._error = self._error or (str(error).splitlines() or [type(error).__name__])[0]

    def gathered(self) -> dict[str, Measured]:
        """Return the new results of all processes."""
        everyones = exchange.everyones(self.trainer, (self._results, self._error))
        for _, error in everyones:
            if error is not None:
                raise OneShotError(f"GradientRank: step {self.trainer.global_step}: {error}.")
        self._results = {}
        return {name: each for results, _ in everyones for name, each in results.items()}


def _uncovered(
    trainer: Trainer, parameters: Mapping[str, nn.Parameter], measured: Mapping[str, Measured]
) -> list[str]:
    """Return the names whose factors do not account for the whole gradient."""
    names = [name for name in parameters if name in measured]
    full = gradients.gradient_norms(trainer, [parameters[name] for name in names])
    exact = "32" in str(trainer.precision) or "64" in str(trainer.precision)
    # Under autocast the layer rounds its input to 16 bits, the factors do not.
    tolerance = 1e-3 if exact else 3e-2
    # A frozen weight has no gradient to compare with: NaN.
    uncovered = [
        name
        for name, norm in zip(names, full.tolist(), strict=True)
        if abs(float(measured[name].values.double().norm()) - norm) > tolerance * norm + 1e-30
    ]
    if uncovered:
        more = f" (and {len(uncovered) - 1} more)" if len(uncovered) > 1 else ""
        rank_zero_warn(
            f"{uncovered[0]}{more} is used outside its layer, too; its full gradient is read."
        )
    return uncovered
