"""What is sharded: FSDP2 for Hugging Face models, and a refusal where weights must be whole."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from oneshot_lit.errors import OneShotError


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a model in place, each decoder layer by itself.

    Args:
        model: A Hugging Face model, with or without an adapter.
        mesh: The mesh of `ModelParallelStrategy`, with a dimension ``data_parallel``.

    Raises:
        OneShotError: if processes are left over for tensor parallelism, which is not done here.
    """
    from torch.distributed.fsdp import fully_shard

    data: Any = mesh["data_parallel"]
    if data.size() != mesh.size():
        raise OneShotError(
            f"trainer.strategy: no tensor parallelism here; give data_parallel_size: {mesh.size()} "
            "(all processes) and tensor_parallel_size: 1."
        )
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    for layer in [module for module in model.modules() if type(module).__name__ in kinds]:
        fully_shard(layer, mesh=data)
    fully_shard(model, mesh=data)


def require_whole_weights(trainer: Trainer, who: str) -> None:
    """Refuse strategies that shard the model or wrap its optimiser.

    Args:
        trainer: The trainer.
        who: What needs whole weights, for the error.

    Raises:
        OneShotError: under FSDP and DeepSpeed.
    """
    if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
        raise OneShotError(
            f"trainer.strategy: {who} needs the whole model in each process, which "
            f"{type(trainer.strategy).__name__} does not give; use one device or ddp."
        )
