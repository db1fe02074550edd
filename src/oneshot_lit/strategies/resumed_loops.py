"""Where a resumed run goes on: Lightning's own counts, corrected, and the random state.

Lightning restores the counts that it had when the checkpoint was written, and goes wrong where
those do not say whether the epoch, or the optimiser step, was over:

- Under ``max_steps`` it goes on with an epoch that has ended: an empty epoch comes first, and all
  later epochs are numbered one too high.
- An epoch that ``max_steps`` or ``max_time`` has ended early counts as done.
- A checkpoint from the end of an epoch's last batch begins the next one without its hooks.
- Gradients are in no checkpoint, so that half an accumulated step is lost.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch import Tensor


def accumulated_batches(trainer: Trainer, epoch: int) -> int:
    """Return how many batches make an optimiser step in an epoch."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches(epoch)
    return trainer.accumulate_grad_batches


def step_numbers(trainer: Trainer, batches: int, epoch: int) -> list[int]:
    """Return for each batch of an epoch the number in the run of its optimiser step, from 0 on.

    Args:
        trainer: The trainer.
        batches: Batches of an epoch.
        epoch: The number of the epoch.
    """
    before = sum(-(-batches // accumulated_batches(trainer, each)) for each in range(epoch))
    number = accumulated_batches(trainer, epoch)
    return [before + batch // number for batch in range(batches)]


def correct_counts(trainer: Trainer, state: dict[str, Any]) -> None:
    """Change the state of a fit loop, before it is loaded, so that the run goes on exactly.

    Changing it again changes nothing.

    Args:
        trainer: The trainer that will load it.
        state: ``trainer.fit_loop.state_dict()``, or ``checkpoint["loops"]["fit_loop"]``.
    """
    # Otherwise no epoch is ever over under `max_steps`.
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
    epochs, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
    done, steps = batches["current"], state["epoch_loop.state_dict"]
    running = done["ready"] == done["started"] == done["processed"]
    if not running or done["ready"] == 0:
        # In the middle of a batch, which is done again, or before the first one.
        return
    counted = epochs["current"]["processed"] == epochs["current"]["started"]
    if batches["is_last_batch"]:
        if not counted and done["completed"] < done["processed"]:
            # Its validation is lost, as with Lightning; the next epoch begins with its hooks.
            _add(epochs, 1, "processed")
            _add(batches, 1, "completed")
            steps["_batches_that_stepped"] += 1
        return
    epoch = epochs["current"]["started"] - 1
    number = accumulated_batches(trainer, epoch)
    half = done["ready"] % number
    if not counted and half == 0:
        return
    for each in (epochs["current"], epochs["total"]):
        each["processed"] = each["completed"] = each["started"] - 1
    # As at the end of the last batch before an optimiser step.
    for each in (batches["current"], batches["total"]):
        each["ready"] -= half
        each["started"] = each["processed"] = each["ready"]
        each["completed"] = each["ready"] - 1
    steps["_batches_that_stepped"] -= 1


def _add(progress: dict[str, Any], number: int, key: str) -> None:
    for each in (progress["current"], progress["total"]):
        each[key] += number


def own_random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the states of this process's generators."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    return own


def set_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    """Go on with the random numbers that follow a state."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)


def restore_random_state(trainer: Trainer, states: list[dict[str, Tensor]]) -> None:
    """Go on with the random numbers of the process that had this one's rank."""
    own = states[trainer.global_rank % len(states)]
    set_random_state(trainer.strategy.root_device, own)
