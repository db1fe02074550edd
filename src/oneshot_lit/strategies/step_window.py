"""The batches of an optimiser step, known before the first of them is trained on.

The gradient of a step is the mean over all its terms, such as labelled tokens, in whichever batches
and on whichever processes they are. Lightning gives the mean over processes of the mean over the
accumulated batches, so each batch's loss is multiplied by its share of the terms; for that, all of
them must be counted before the first backward pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, distributed

Weigh = Callable[[Any], Tensor]


class StepWindow:
    """Scale the loss of each batch so that an optimiser step takes the mean over all its terms.

    Args:
        weigh: Returns how many terms the loss of a batch is the mean of, as a scalar.
    """

    def __init__(self, weigh: Weigh) -> None:
        self.weigh = weigh
        # The data fetcher of these batches, and the number of the first one.
        self._fetcher: Any = None
        self._first = 0
        # Of each batch of this process: its weight, what its loss is multiplied by, and that loss.
        self._weights, self._scales = torch.zeros(0), torch.zeros(0)
        self._losses: dict[int, Tensor] = {}

    def begin(self, trainer: Trainer, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the weight of the current batch, and the factor of its loss.

        All processes must call it for each of their batches.

        Args:
            trainer: The running trainer, in a training step.
            batch: The batch of this step, as the training step gets it.

        Returns:
            Two scalars, float32.
        """
        loop = trainer.fit_loop
        place = loop.epoch_loop.batch_progress.total.ready - self._first
        if loop._data_fetcher is not self._fetcher or not 0 <= place < len(self._weights):
            self._fetcher, self._first, place = loop._data_fetcher, self._first + place, 0
            batches = [batch, *_batches_ahead(trainer)]
            self._weights = torch.stack([torch.as_tensor(self.weigh(b)).float() for b in batches])
            # Lightning divides by both: the strategy by the processes, accumulation by the batches.
            mean = self._weights.sum() / (trainer.world_size * trainer.accumulate_grad_batches)
            if trainer.world_size > 1:
                # Not the strategy's `reduce`, which makes all processes wait for each other.
                distributed.all_reduce(mean)
            # A step without any term changes nothing.
            tiny = torch.finfo(mean.dtype).tiny
            self._scales, self._losses = self._weights / mean.clamp_min(tiny), {}
        return self._weights[place], self._scales[place]

    def mean_loss(self, trainer: Trainer, loss: Tensor) -> Tensor | None:
        """Record a scaled loss; return the step's loss after its last batch, otherwise None.

        Returns:
            A scalar whose mean over the processes is the mean over all terms of the step.
        """
        place = trainer.fit_loop.epoch_loop.batch_progress.total.ready - self._first
        self._losses[place] = loss.detach()
        if place < len(self._weights) - 1:
            return None
        return torch.stack([*self._losses.values()]).sum() / trainer.accumulate_grad_batches


class _Ahead:
    """An iterator whose next batches can be looked at before they are taken."""

    def __init__(self, iterator: Iterator[Any]) -> None:
        self.iterator, self.seen = iterator, deque[Any]()

    def __iter__(self) -> _Ahead:
        return self

    def __next__(self) -> Any:
        return self.seen.popleft() if self.seen else next(self.iterator)

    def look(self, number: int) -> list[Any]:
        """Return the next `number` items, or all that are left."""
        while len(self.seen) < number:
            try:
                self.seen.append(next(self.iterator))
            except StopIteration:
                break
        return list(self.seen)[:number]


def _batches_ahead(trainer: Trainer) -> list[Any]:
    """Return the batches that are still to come before the optimiser steps, on the device."""
    loop = trainer.fit_loop
    done = loop.epoch_loop.batch_progress.current.ready
    number = -done % trainer.accumulate_grad_batches
    number = int(min(number, trainer.num_training_batches - done))
    if number <= 0 or trainer.is_last_batch:
        return []
    fetcher: Any = loop._data_fetcher
    # Without a known length, Lightning itself has fetched one more already.
    fetched = [*getattr(fetcher, "batches", [])][:number]
    if not isinstance(fetcher.iterator, _Ahead):
        # Transparent to Lightning, which counts what it takes.
        fetcher.iterator = _Ahead(fetcher.iterator)
    fetched += fetcher.iterator.look(number - len(fetched))
    return [_on_device(trainer, batch) for batch, _, _ in fetched]


def _on_device(trainer: Trainer, batch: Any) -> Any:
    """Return a copy of a batch with the hooks applied that Lightning will apply to it."""
    with isolate_rng():
        batch = trainer.precision_plugin.convert_input(deepcopy(batch))
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
