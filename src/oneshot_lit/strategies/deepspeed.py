"""DeepSpeed ZeRO with Hugging Face models, right on GPUs and, for tests, on CPUs."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor
from torch.optim import Optimizer

from oneshot_lit.errors import OneShotError


class HFDeepSpeedStrategy(DeepSpeedStrategy):
    """Lightning's DeepSpeed strategy for models of `transformers` and `peft`.

    Under ZeRO-3 `transformers` shards a model as it loads it, but only while it knows of the
    DeepSpeed config; Lightning's own sharding in its place gives a size mismatch when loading, and
    silently wrong initial weights of new models and adapters. Lightning and DeepSpeed both divide
    the loss by the number of accumulated batches; here it is divided once.

    Args:
        *args: As `DeepSpeedStrategy`.
        **kwargs: As `DeepSpeedStrategy`, such as ``stage``.

    Raises:
        OneShotError: if deepspeed is not installed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if importlib.util.find_spec("deepspeed") is None:
            raise OneShotError(
                f"{type(self).__name__} needs deepspeed, which is not installed; run "
                "pip install 'oneshot-lit[deepspeed]', or choose another trainer.strategy."
            )
        super().__init__(*args, **kwargs)
        self._hf_config: Any = None

    @contextmanager
    def model_sharded_context(self) -> Generator[None, None, None]:
        """Tell `transformers` to shard what `configure_model` loads, until the teardown."""
        self._init_config_if_needed()
        if self.zero_stage_3:
            from transformers.integrations import HfDeepSpeedConfig

            # `transformers` holds a weak reference only.
            self._hf_config = HfDeepSpeedConfig(self.config)
        yield

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


class DeepSpeedCPUStrategy(HFDeepSpeedStrategy):
    """The same on CPUs over gloo: slow, but the real engine, so ZeRO can be tried without a GPU.

    Offloading the optimiser and ``16-mixed`` precision do not run here.

    Args:
        *args: As `DeepSpeedStrategy`.
        **kwargs: As `DeepSpeedStrategy`, such as ``stage``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # DeepSpeed looks for an accelerator once, when it is imported.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        super().__init__(*args, **kwargs)

    def setup_environment(self) -> None:
        """Set up without the parent's demand for CUDA."""
        devices = self.parallel_devices or []
        # DeepSpeed compares the device's index with its rank; cpu:1 is another name of cpu.
        self.parallel_devices = [torch.device("cpu", n) for n in range(len(devices))]
        DDPStrategy.setup_environment(self)

    def _init_deepspeed_distributed(self) -> None:
        import deepspeed.ops

        # Otherwise its first use compiles a shared-memory kernel for more than a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        super()._init_deepspeed_distributed()
