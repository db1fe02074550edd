"""What cannot run is refused before any process is started."""

from __future__ import annotations

import os
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import distributed

from oneshot_lit.errors import OneShotError


def require_runnable(trainer: Trainer) -> None:
    """Refuse a trainer whose processes or strategy do not suit the machine.

    Raises:
        OneShotError: naming the key and how to correct it.
    """
    _require_as_many_processes(trainer)
    _require_accelerator(trainer)


def _require_as_many_processes(trainer: Trainer) -> None:
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


def _require_accelerator(trainer: Trainer) -> None:
    strategy: Any = trainer.strategy
    if hasattr(strategy, "require_accelerator"):
        strategy.require_accelerator()
    elif isinstance(strategy, DeepSpeedStrategy) and not isinstance(
        trainer.accelerator, CUDAAccelerator
    ):
        raise OneShotError(
            f"trainer.strategy: {type(strategy).__name__} needs CUDA GPUs; on CPUs use "
            "oneshot_lit.strategies.HFDeepSpeedStrategy (configs/strategy/), or ddp."
        )
