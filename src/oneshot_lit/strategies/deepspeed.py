"""DeepSpeed ZeRO for Hugging Face models, on GPUs and on CPUs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from oneshot_lit.errors import OneShotError
from oneshot_lit.strategies.distributed_checkpoint import tensors_only
from oneshot_lit.strategies.folders import add_own_state, require_resumable, whole_folder
from oneshot_lit.strategies.masters import MasterWeights


@contextmanager
def whole_models() -> Generator[None, None, None]:
    """Let `transformers` load whole models though ZeRO-3 would shard them."""
    from transformers.integrations import deepspeed

    known = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed._hf_deepspeed_config_weak_ref = None
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = known


def require_deepspeed() -> None:
    """Raise an `OneShotError` if deepspeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise OneShotError(
            "trainer.strategy needs deepspeed, which is not installed; run "
            "pip install 'oneshot-lit[deepspeed]', or choose another strategy."
        )
    quieten_import()


def quieten_import() -> None:
    """Keep DeepSpeed from looking for every accelerator on import, with warnings on stdout."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


@contextmanager
def plain_loads() -> Generator[None, None, None]:
    """Let DeepSpeed read tensors and its own records from a checkpoint, and nothing that runs."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    records = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    with torch.serialization.safe_globals(records), tensors_only():
        yield


_LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


class HFDeepSpeedStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy for models of `transformers` and `peft`.

    It gets right what the stock strategy gets wrong without a warning:

    - Under ZeRO-3 `transformers` shards a model as it loads it, but only while it knows of the
      DeepSpeed config; Lightning's own sharding in its place gives wrong initial weights of new
      models and adapters.
    - Lightning and DeepSpeed both divide the loss by the number of accumulated batches; here it is
      divided once. The last batches of an epoch are followed by an optimiser step even if they are
      fewer, as under any other strategy.
    - In 16-bit precision the fp32 master weights start from the weights of the model's folder, not
      from their 16-bit rounding, and RoPE buffers keep float32.
    - A checkpoint is whole or absent, and says which strategy and how many processes it needs.

    On CPUs the same engine runs over gloo, slowly, and without compiling anything: offloading does
    nothing there, since all memory is the host's.

    Args:
        *args: As `DeepSpeedStrategy`.
        **kwargs: As `DeepSpeedStrategy`, such as ``stage``.

    Raises:
        OneShotError: if deepspeed is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_deepspeed()
        super().__init__(*args, **kwargs)
        self._hf_config: Any = None
        assert isinstance(self.config, dict)
        # The config may name any torch optimiser, also when its states are offloaded.
        self.config.setdefault("zero_force_ds_cpu_optimizer", False)

    @property
    def stage(self) -> int:
        """The ZeRO stage."""
        assert isinstance(self.config, dict)
        return int(self.config.get("zero_optimization", {}).get("stage", 0))

    # ------------------------------------------------------------- environment

    def setup_environment(self) -> None:
        """Set up on GPUs, or on CPUs without the parent's demand for CUDA."""
        if isinstance(self.accelerator, CPUAccelerator):
            if self.precision_plugin.precision in ("16-mixed", "16-true"):
                raise OneShotError(
                    "trainer.precision: DeepSpeed scales no losses on CPUs; give bf16-mixed."
                )
            self._prepare_for_cpu()
            DDPStrategy.setup_environment(self)
        else:
            super().setup_environment()

    def _prepare_for_cpu(self) -> None:
        from deepspeed.accelerator import get_accelerator, set_accelerator
        from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

        # DeepSpeed takes the GPU of the machine, whatever the trainer was told.
        if get_accelerator()._name != "cpu":
            set_accelerator(CPU_Accelerator())
        # DeepSpeed compares the device's index with its rank; cpu:1 is another name of cpu.
        devices = self.parallel_devices or []
        self.parallel_devices = [torch.device("cpu", n) for n in range(len(devices))]
        assert isinstance(self.config, dict)
        zero = self.config.get("zero_optimization", {})
        offloads = [zero.pop(key, None) for key in ("offload_optimizer", "offload_param")]
        if any(offloads):
            rank_zero_info("nothing is offloaded: on CPUs all memory is the host's already")

    def _init_deepspeed_distributed(self) -> None:
        if isinstance(self.accelerator, CPUAccelerator):
            import deepspeed.ops

            # Otherwise its first use compiles a shared-memory kernel for more than a minute.
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super()._init_deepspeed_distributed()

    def _auto_select_batch_size(self) -> int:
        # Only DeepSpeed's own timings use it, and the parent asks for training rows even in a test.
        return 1

    # ------------------------------------------------------------------- model

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Tell `transformers` to shard what `configure_model` loads, until the teardown.

        In 16-bit precision the model is built in float32 first, for the master weights.
        """
        self._init_config_if_needed()
        if self.zero_stage_3:
            from transformers.integrations import HfDeepSpeedConfig

            assert isinstance(self.config, dict)
            wide = {k: v for k, v in self.config.items() if k not in ("bf16", "fp16")}
            # `transformers` holds a weak reference only.
            self._hf_config = HfDeepSpeedConfig(wide)
        yield

    def init_deepspeed(self) -> None:
        """Start the engine; master weights and buffers keep their float32 values."""
        module: Any = self.lightning_module
        assert isinstance(self.config, dict)
        low = [d for key, d in _LOW.items() if self.config.get(key, {}).get("enabled")]
        if getattr(module, "peft", None) is not None:
            self.exclude_frozen_parameters = True
        training = module.trainer.state.fn == TrainerFn.FITTING
        masters = MasterWeights(module, low[0], keep=training) if low else None
        super().init_deepspeed()
        if masters is not None:
            masters.restore(module)

    @property
    def handles_gradient_accumulation(self) -> bool:
        """Whether the engine decides when to step; at the end of an epoch it does not."""
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        ready = trainer.fit_loop.epoch_loop.batch_progress.current.ready
        return not trainer.is_last_batch and ready < trainer.num_training_batches

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """Run a batch; the last one of an epoch is always followed by an optimiser step."""
        trainer = self.lightning_module.trainer  # type: ignore[union-attr]
        if trainer.accumulate_grad_batches > 1:
            engine = self.deepspeed_engine
            engine.set_gradient_accumulation_boundary(not trainer.fit_loop._should_accumulate())
        return super().training_step(*args, **kwargs)

    def backward(
        self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Run the backward pass; Lightning has divided the loss by the accumulated batches."""
        kwargs.setdefault("scale_wrt_gas", False)
        return super().backward(closure_loss, optimizer, *args, **kwargs)

    def teardown(self) -> None:
        """Let `transformers` load whole models again."""
        self._hf_config = None
        super().teardown()

    # ------------------------------------------------------------- checkpoints

    def _kind(self) -> dict[str, Any]:
        return {"kind": "deepspeed", "stage": self.stage, "world_size": self.world_size}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """Write the shards of all processes into a folder that appears only when it is whole."""
        with whole_folder(self, filepath, self._kind(), checkpoint) as folder:
            super().save_checkpoint(checkpoint, folder, storage_options)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint of the same stage and number of processes; others are refused."""
        if not (self.load_full_weights and self.zero_stage_3):
            fitting = self.lightning_module.trainer.state.fn == TrainerFn.FITTING  # type: ignore[union-attr]
            require_resumable(Path(checkpoint_path), self._kind(), fitting)
        with plain_loads():
            loaded = super().load_checkpoint(checkpoint_path, weights_only)
        add_own_state(self, Path(checkpoint_path), loaded)
        return loaded
