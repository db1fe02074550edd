"""FSDP2 for Hugging Face models: the strategy, and how a model is sharded."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.optim import Optimizer

from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.distributed_checkpoint import META, read_tensors
from oneshot_lit.strategies.folders import add_own_state, require_resumable, whole_folder


class FSDP2Strategy(ModelParallelStrategy):
    """PyTorch's fully sharded data parallelism, version 2, over all processes.

    `LanguageModelModule.configure_model` shards the model, one process of a machine after another.
    A checkpoint is a folder that is whole or absent, and that any number of processes can resume.
    Runs on GPUs and, over gloo, on CPUs.

    Args:
        process_group_backend: nccl or gloo; chosen by the device if not given.
        **kwargs: As `ModelParallelStrategy`, such as ``timeout``.
    """

    def __init__(self, process_group_backend: str | None = None, **kwargs: Any) -> None:
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=True,
            process_group_backend=process_group_backend,
            **kwargs,
        )

    def setup_environment(self) -> None:
        """Take all processes into one mesh."""
        self._data_parallel_size = self.num_processes * self.num_nodes
        super().setup_environment()

    def setup(self, trainer: Trainer) -> None:
        """Shard and move the model; evaluate under `no_grad`: FSDP2 shards no inference tensors."""
        loops: list[Any] = [trainer.validate_loop, trainer.test_loop, trainer.predict_loop]
        for loop in [*loops, trainer.fit_loop.epoch_loop.val_loop]:
            loop.inference_mode = False
        super().setup(trainer)

    @contextmanager
    def tensor_init_context(self, empty_init: bool | None = None) -> Generator[None, None, None]:
        """Create tensors on the device, so that all strategies draw the same random ones."""
        with self.root_device, super().tensor_init_context(empty_init):
            yield

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write the shards of all processes into a folder that appears only when it is whole."""
        kind = {"kind": "fsdp2", "world_size": self.world_size}
        with whole_folder(self, filepath, kind, checkpoint) as folder:
            super().save_checkpoint(checkpoint, folder, storage_options)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the optimiser's state; asking for it changes nothing.

        PyTorch makes a missing state by a step with zero gradients, which would then count as a
        step.
        """
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        fresh = not optimizer.state
        state = super().optimizer_state(optimizer)
        if fresh:
            optimizer.state.clear()
            for values in state.get("state", {}).values():
                if isinstance(values, dict) and "step" in values:
                    values["step"] = torch.zeros_like(torch.as_tensor(values["step"]))
        return state

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint of FSDP2, of any number of processes; others are refused."""
        module = self.lightning_module
        assert module is not None
        assert self.model is not None
        path = Path(self.broadcast(checkpoint_path))
        fitting = module.trainer.state.fn == TrainerFn.FITTING
        require_resumable(path, {"kind": "fsdp2"}, fitting)
        weights = get_model_state_dict(self.model)
        if not module.strict_loading:
            trained = {name for name, p in module.named_parameters() if p.requires_grad}
            weights = {name: weight for name, weight in weights.items() if name in trained}
        optimizers = {f"optimizer_{n}": each for n, each in enumerate(self.optimizers)}
        state: dict[str, Any] = {"state_dict": weights}
        if fitting:
            for name, each in optimizers.items():
                state[name] = get_optimizer_state_dict(self.model, each)
        read_tensors(state, path)
        self.model.load_state_dict(weights, strict=module.strict_loading)
        for name, each in optimizers.items() if fitting else ():
            set_optimizer_state_dict(self.model, each, optim_state_dict=state[name])
        loaded: dict[str, Any] = torch.load(path / META, map_location="cpu", weights_only=True)
        add_own_state(self, path, loaded)
        return loaded


# Whole weights are sent and used in 16 bits, so that autocast keeps no copies of them; gradients
# are summed in float32.
_POLICIES = {
    "bf16-mixed": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
    "16-mixed": MixedPrecisionPolicy(param_dtype=torch.float16, reduce_dtype=torch.float32),
}


def shard(model: nn.Module, mesh: DeviceMesh, precision: str = "32-true") -> None:
    """Shard a model in place, each decoder layer by itself.

    Args:
        model: A Hugging Face model, with or without an adapter; may be on the meta device.
        mesh: The mesh of `ModelParallelStrategy`, with a dimension ``data_parallel``.
        precision: That of the trainer.

    Raises:
        OneShotError: if the mesh has processes for tensor parallelism, which is not supported.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    data: Any = mesh["data_parallel"]
    if data.size() != mesh.size():
        raise OneShotError(
            "trainer.strategy: no tensor parallelism here; use "
            "oneshot_lit.strategies.FSDP2Strategy (configs/strategy/fsdp2.yaml)."
        )
    policy = _POLICIES.get(precision, MixedPrecisionPolicy())
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [module for module in model.modules() if type(module).__name__ in kinds]
    for unit in [*layers, model]:
        # All parameters of a unit are sent in one message, so they need one dtype.
        for odd in _of_other_dtype(unit):
            fully_shard(odd, mesh=data, mp_policy=policy)
        fully_shard(unit, mesh=data, mp_policy=policy)
    # Generation runs outside of `forward` and needs whole weights, too.
    root: Any = model
    register_fsdp_forward_method(root, "generate")


def _of_other_dtype(unit: nn.Module) -> list[nn.Module]:
    """Return the modules whose own parameters differ in dtype from most of the unit's."""
    from torch.distributed.fsdp import FSDPModule

    sizes: dict[torch.dtype, int] = {}
    owners = []
    for module in unit.modules():
        own = list(module.parameters(recurse=False))
        if own and not isinstance(module, FSDPModule):
            owners.append((module, own[0].dtype))
        for p in own:
            sizes[p.dtype] = sizes.get(p.dtype, 0) + p.numel()
    usual = max(sizes, key=lambda dtype: sizes[dtype], default=None)
    return [module for module, dtype in owners if dtype != usual and module is not unit]
