"""A wrong number of processes is refused before the fit begins."""

from __future__ import annotations

import os

from lightning.pytorch import Trainer
from torch import distributed

from oneshot_lit.errors import OneShotError


def require_runnable(trainer: Trainer) -> None:
    """Refuse a trainer that knows of another number of processes than torchrun has started.

    Raises:
        OneShotError: naming the key and how to correct it.
    """
    if not distributed.is_available() or not distributed.is_torchelastic_launched():
        return
    asked, started = trainer.num_devices * trainer.num_nodes, int(os.environ["WORLD_SIZE"])
    if asked != started:
        # With one device each process would run the whole fit, all into one folder.
        raise OneShotError(
            f"trainer.devices {trainer.num_devices} x trainer.num_nodes {trainer.num_nodes} is not "
            f"the {started} processes that torchrun started; give --trainer.devices "
            f"{os.environ.get('LOCAL_WORLD_SIZE', started)} --trainer.num_nodes "
            f"{os.environ.get('GROUP_WORLD_SIZE', 1)}."
        )
