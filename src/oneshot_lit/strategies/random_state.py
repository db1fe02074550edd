"""The random state of every process, so that a resumed run draws what an unbroken one does."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from oneshot_lit.strategies.exchange import everyones


def random_states(trainer: Trainer) -> list[dict[str, Tensor]]:
    """Return the states of the generators of all processes; called by all of them together.

    Rows of different lengths take different numbers of draws, so the states of processes diverge.
    """
    own = {"cpu": torch.get_rng_state()}
    device = trainer.strategy.root_device
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    return everyones(trainer, own)


def restore_random_state(trainer: Trainer, states: list[dict[str, Tensor]]) -> None:
    """Go on with the random numbers of the process that had this one's rank."""
    own = states[trainer.global_rank % len(states)]
    torch.set_rng_state(own["cpu"])
    device = trainer.strategy.root_device
    if device.type == "cuda" and "cuda" in own:
        torch.cuda.set_rng_state(own["cuda"], device)
