"""Spectra of full gradients; the processes share the decompositions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError
from oneshot_lit.spectral import (
    GradientComparison,
    gradient_singular_values,
    matrix_singular_values,
)
from oneshot_lit.strategies import exchange, gradients

Compare = Callable[[str, exchange.Pair], GradientComparison | None]


class Measured(NamedTuple):
    """What was measured of one gradient.

    Attributes:
        values: Singular values, (n,), descending, on the CPU; none where the step left no gradient.
        comparison: How near it is to the reference, or None without one.
    """

    values: Tensor
    comparison: GradientComparison | None = None


Task = tuple[str, Callable[[], Measured]]


def shared_spectra(
    trainer: Trainer,
    parameters: Mapping[str, nn.Parameter],
    factors: Mapping[str, exchange.Pair],
    compare: Compare | None = None,
) -> dict[str, Measured]:
    """Return the singular values of each full gradient; every process must call it.

    Args:
        trainer: The running trainer, between a backward pass and the optimiser step.
        parameters: Name -> 2-D parameter; the same names on all processes.
        factors: Name -> (right, left) of this process, as `FactorRecorder.factors`. A gradient
            without factors is read whole, as is one that its factors do not account for.
        compare: Name and factors of a full gradient -> its comparison with a reference; called on
            the process that decomposes it.

    Returns:
        Name -> what was measured, the same on all processes.

    Raises:
        OneShotError: on all processes, if a gradient holds NaN or cannot be read.
    """

    def of_factors() -> Iterator[Task]:
        scale = gradients.loss_scale(trainer)
        # Of several processes each gets factors of its own, which live for one decomposition.
        triangles: dict[int, Tensor] | None = {} if trainer.world_size == 1 else None
        for name, pair in exchange.full_factors(trainer, factors, list(parameters), scale):

            def task(name: str = name, pair: exchange.Pair = pair) -> Measured:
                near = None if compare is None else compare(name, pair)
                return Measured(gradient_singular_values(*pair, triangles).cpu(), near)

            yield name, task

    def of_whole(names: list[str]) -> Iterator[Task]:
        for n, name in enumerate(names):
            gradient = gradients.full_gradient(trainer, parameters[name])
            if gradient is not None and n % trainer.world_size == trainer.global_rank:
                yield name, lambda g=gradient: Measured(matrix_singular_values(g).cpu())  # type: ignore[misc]

    measured = _shared(trainer, of_factors())
    missing = [name for name in parameters if name not in measured]
    whole = [*missing, *_incomplete(trainer, parameters, measured)]
    measured |= _shared(trainer, of_whole(whole))
    return {name: measured.get(name, Measured(torch.zeros(0))) for name in parameters}


def _shared(trainer: Trainer, tasks: Iterator[Task]) -> dict[str, Measured]:
    """Do the tasks of this process and return the results of all."""
    results: dict[str, Measured] = {}
    first: str | None = None
    for name, outcome in _done(trainer, tasks):
        if isinstance(outcome, str):
            first = first or outcome
        else:
            results[name] = outcome
    everyones = exchange.everyones(trainer, (results, first))
    for _, reason in everyones:
        if reason is not None:
            raise OneShotError(f"GradientRank: step {trainer.global_step}: {reason}.")
    return {name: each for results, _ in everyones for name, each in results.items()}


def _done(trainer: Trainer, tasks: Iterator[Task]) -> Iterator[tuple[str, Measured | str]]:
    """Yield the name of each task and its result, or in a line why there is none."""

    def outcome(task: Task) -> tuple[str, Measured | str]:
        try:
            return task[0], task[1]()
        except (ValueError, RuntimeError) as error:
            # Also what LAPACK and a full memory raise. No process may stop alone: the others would
            # wait for it.
            return task[0], (str(error).splitlines() or [type(error).__name__])[0]

    threads = torch.get_num_threads()
    if trainer.world_size > 1 or threads == 1 or trainer.strategy.root_device.type != "cpu":
        yield from map(outcome, tasks)
        return
    # Decompositions of this size gain next to nothing from a second thread, so each has its own.
    torch.set_num_threads(1)
    try:
        one = partial(torch.set_num_threads, 1)
        with ThreadPoolExecutor(threads, initializer=one) as pool:
            yield from pool.map(outcome, tasks)
    finally:
        torch.set_num_threads(threads)


def _incomplete(
    trainer: Trainer, parameters: Mapping[str, nn.Parameter], measured: Mapping[str, Measured]
) -> list[str]:
    """Return the names whose factors do not account for the whole gradient."""
    names = [name for name in parameters if name in measured]
    full = gradients.gradient_norms(trainer, [parameters[name] for name in names])
    exact = "32" in str(trainer.precision) or "64" in str(trainer.precision)
    # Under autocast the layer rounds its input to 16 bits, the factors do not.
    tolerance = 1e-3 if exact else 3e-2
    # A frozen weight has no gradient to compare with: NaN.
    incomplete = [
        name
        for name, norm in zip(names, full.tolist(), strict=True)
        if abs(float(measured[name].values.double().norm()) - norm) > tolerance * norm + 1e-30
    ]
    if incomplete:
        more = f" (and {len(incomplete) - 1} more)" if len(incomplete) > 1 else ""
        rank_zero_warn(
            f"{incomplete[0]}{more} is used outside its layer, too; its full gradient is read."
        )
    return incomplete
