"""Short fits under a strategy, for the two processes of a test and for the test itself."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from oneshot_lit.callbacks import GradientRank
from oneshot_lit.data import ChatJsonl, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models import loading
from oneshot_lit.spectral.recorder import FactorRecorder
from oneshot_lit.strategies import FSDP2Strategy, HFDeepSpeedStrategy, gradients

PEFT = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "orthogonal"}


class Bare(nn.Module):
    """A linear map that is no `nn.Linear`, so that no factors are recorded."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.matrix = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.matrix)


class Module(LanguageModelModule):
    """Optionally with matrices in no linear layer, or with one used outside its layer."""

    outside = bare = False

    def configure_model(self) -> None:
        def load(*args: Any, **kwargs: Any) -> Any:
            model = load_model(*args, **kwargs)
            for layer in model.model.layers if self.bare else ():
                layer.mlp.down_proj = Bare(layer.mlp.down_proj.weight)
            return model

        with patch.object(loading, "load_model", load):
            super().configure_model()

    def configure_optimizers(self) -> Any:
        # Before DeepSpeed takes the model over; an adapter is small, and is sharded only then.
        loaded = [p for name, p in self.named_parameters() if "lora_" not in name]
        self.sharded = all(hasattr(p, "ds_id") for p in loaded)
        return super().configure_optimizers()

    def on_train_end(self) -> None:
        # Whether ZeRO-3 knows the order in which a step needs the weights.
        offload = getattr(self.trainer.optimizers[0], "parameter_offload", None)
        self.foresees = offload is not None and offload.get_param_coordinator().is_complete_trace()

    def compute_loss(self, batch: Any) -> torch.Tensor:
        loss = super().compute_loss(batch)
        if self.outside:
            # Through the layer, as its weight may be sharded, but past the recorder's hooks.
            head = self.model.get_output_embeddings()
            hooks, head._forward_hooks = head._forward_hooks, type(head._forward_hooks)()
            inputs = torch.eye(head.in_features, dtype=loss.dtype)
            loss = loss + 0.1 * head(inputs).square().sum()
            head._forward_hooks = hooks
        return loss


load_model = loading.load_model


def strategy(name: str) -> Any:
    if name == "fsdp2":
        return FSDP2Strategy()
    if name == "tensor parallel":
        return ModelParallelStrategy()
    if name.startswith("zero"):
        # Small buckets, so that even the tiny model's gradients go in several.
        return HFDeepSpeedStrategy(stage=int(name[-1]), reduce_bucket_size=3000)
    return DDPStrategy() if name == "ddp" else SingleDeviceStrategy(torch.device("cpu"))


def reading(how: str | None) -> Any:
    """Make spectra use "factors" only, so that a whole gradient is an error, or "gradient" only."""
    if how == "factors":
        error = OneShotError("a whole gradient was read")
        return patch.object(gradients, "full_gradient", side_effect=error)
    if how == "gradient":
        return patch.object(FactorRecorder, "factors", return_value={})
    return nullcontext()


def fit(
    name: str,
    folder: str,
    rows: str,
    root: str,
    processes: int = 2,
    batch_size: int = 2,
    accumulate: int = 1,
    outside: bool = False,
    bare: bool = False,
    peft: bool = False,
    read: str | None = None,
    options: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
) -> None:
    torch.manual_seed(0)
    module = Module(folder, peft=PEFT if peft else None)
    module.outside, module.bare = outside, bare
    options = dict(options or {})
    if options.get("reference") == "rows":
        options["reference"] = ChatJsonl(rows, skip=8)
    data = SafetyDataModule(train=ChatJsonl(rows), batch_size=batch_size, shuffle=False)
    settings = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "devices": processes,
        "strategy": strategy(name),
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "accumulate_grad_batches": accumulate,
        "callbacks": [GradientRank(**options)],
        "use_distributed_sampler": False,
    }
    running = Trainer(**{**settings, **(trainer or {})})
    with reading(read):
        running.fit(module, data)
    if running.is_global_zero:
        sharded = {"loaded": module.sharded, "after": is_deepspeed_zero3_enabled()}
        (Path(root) / "sharded").write_text(json.dumps(sharded))
        (Path(root) / "foresees").write_text(json.dumps(module.foresees))


def reference(
    folder: Path,
    rows: Path,
    ranks: int = 2,
    batch_size: int = 2,
    accumulate: int = 1,
    outside: bool = False,
    bare: bool = False,
    peft: bool = False,
    skip: int = 0,
) -> dict[str, torch.Tensor]:
    """Gradients of the first step in float64, without hooks: the mean over all tokens."""
    torch.manual_seed(0)
    module = Module(str(folder), dtype="float64", peft=PEFT if peft else None)
    module.outside, module.bare = outside, bare
    module.configure_model()
    if peft:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("lora_" in name or "base_layer" in name)
    data = SafetyDataModule(train=ChatJsonl(str(rows)), batch_size=batch_size, shuffle=False)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    assert data.training is not None
    items = [data.training[n] for n in range(skip, len(data.training))]
    collate = data.train_dataloader().collate_fn
    # All batches of the step, of all ranks.
    batches = [
        collate(items[rank::ranks][n * batch_size : (n + 1) * batch_size])
        for n in range(accumulate)
        for rank in range(ranks)
    ]
    tokens = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]
    for batch, own in zip(batches, tokens, strict=True):
        (module.compute_loss(batch) * own / sum(tokens)).backward()
    return {
        n.removeprefix("model."): p.grad
        for n, p in module.named_parameters()
        if p.ndim == 2 and p.grad is not None
    }
