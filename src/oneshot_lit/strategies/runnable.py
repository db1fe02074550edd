"""What cannot run is refused before any process is started."""

from __future__ import annotations

import os

from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import distributed

from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.deepspeed import DeepSpeedCPUStrategy


def require_runnable(trainer: Trainer) -> None:
    """Refuse a trainer whose processes or strategy do not suit the machine.

    Raises:
        OneShotError: naming the key and the mend.
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
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, DeepSpeedStrategy):
        return
    if isinstance(strategy, DeepSpeedCPUStrategy):
        if trainer.precision == "16-mixed":
            raise OneShotError(
                f"trainer.precision 16-mixed: {name} cannot scale losses on CPUs; use bf16-mixed "
                "or 32-true."
            )
    elif not isinstance(trainer.accelerator, CUDAAccelerator):
        raise OneShotError(
            f"trainer.strategy: {name} needs CUDA GPUs; on CPUs use "
            "oneshot_lit.strategies.DeepSpeedCPUStrategy, or ddp."
        )
