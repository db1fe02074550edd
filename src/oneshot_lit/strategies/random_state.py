"""The random state of every process, so that a resumed run draws what an unbroken one does."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from oneshot_lit.strategies.exchange import everyones


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


def random_states(trainer: Trainer) -> list[dict[str, Tensor]]:
    """Return the states of the generators of all processes; called by all of them together.

    Rows of different lengths take different numbers of draws, so the states of processes diverge.
    """
    return everyones(trainer, own_random_state(trainer.strategy.root_device))


def restore_random_state(trainer: Trainer, states: list[dict[str, Tensor]]) -> None:
    """Go on with the random numbers of the process that had this one's rank."""
    own = states[trainer.global_rank % len(states)]
    set_random_state(trainer.strategy.root_device, own)
