"""What a DeepSpeed strategy makes of a model, for the tests of Lightning's silent faults."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.strategies import HFDeepSpeedStrategy
from oneshot_lit.strategies.weights import whole_weight


class StockOnCPU(HFDeepSpeedStrategy):
    """Lightning's own strategy, made to run on CPUs and otherwise as it is."""

    model_sharded_context = DeepSpeedStrategy.model_sharded_context  # type: ignore[assignment]
    init_deepspeed = DeepSpeedStrategy.init_deepspeed
    backward = DeepSpeedStrategy.backward  # type: ignore[assignment]
    training_step = DeepSpeedStrategy.training_step
    handles_gradient_accumulation = DeepSpeedStrategy.handles_gradient_accumulation


class Module(LanguageModelModule):
    """Looks at the model as the engine has it when training starts."""

    def on_train_start(self) -> None:
        super().on_train_start()
        named = list(self.named_parameters())
        self.weights = {name: whole_weight(p).cpu().clone() for name, p in named}
        self.buffers = {n: (str(b.dtype), b.cpu().clone()) for n, b in self.named_buffers()}


def probe(
    root: str,
    folder: str,
    rows: str,
    stage: int,
    stock: bool = False,
    config: dict[str, Any] | None = None,
    peft: dict[str, Any] | None = None,
    precision: str = "32-true",
    accumulate: int = 1,
) -> None:
    """Train one epoch with SGD; write weights and buffers at the start, and weights at the end."""
    torch.manual_seed(0)
    model: dict[str, Any] = {"model_name_or_path": folder}
    if config is not None:
        model = {"model_config": config, "tokenizer_name_or_path": folder}
    module = Module(**model, peft=peft, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1))
    trainer = Trainer(
        default_root_dir=root,
        accelerator="cpu",
        devices=2,
        strategy=(StockOnCPU if stock else HFDeepSpeedStrategy)(stage=stage),
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        accumulate_grad_batches=accumulate,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    found: dict[str, Any] = {}
    try:
        data = SafetyDataModule(ChatJsonl(rows), batch_size=4, share_batch=True, shuffle=False)
        trainer.fit(module, data)
        named = list(module.named_parameters())
        found["end"] = {name: whole_weight(p).cpu().clone() for name, p in named}
        found["start"], found["buffers"] = module.weights, module.buffers
        found["steps"] = trainer.global_step
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
    if rank_zero_only.rank == 0:
        Path(root).mkdir(parents=True, exist_ok=True)
        torch.save(found, Path(root) / "found.pt")
        (Path(root) / "error.json").write_text(json.dumps(found.get("error")))
