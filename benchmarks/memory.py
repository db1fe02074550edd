"""Estimated memory next to measured, and the time of a step.

    python benchmarks/memory.py [--model FOLDER] [--strategy single deepspeed_zero3_offload]
                                [--batch 1] [--length 512] [--gradient-checkpointing]

On a CUDA machine: steps of a model with random weights on one GPU under bf16-mixed, all weights and
LoRA of rank 16, each in a process of its own. --model is a folder with a config.json; without it, a
Llama of 1.2 billion weights. Reports torch.cuda.max_memory_allocated from the
second step on, when the optimiser's state exists. Offload needs DeepSpeedCPUAdam, which DeepSpeed
compiles at its first use. Without CUDA: the states of a tiny model on the CPU, in one process; the
tests do so in two, under all strategies. Run on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from torch.utils.data import DataLoader

from oneshot_lit.models.adapters import add_adapter
from oneshot_lit.models.loss import next_token_loss
from oneshot_lit.models.memory import STRATEGIES, estimate, model_size
from oneshot_lit.strategies import HFDeepSpeedStrategy
from oneshot_lit.strategies.fsdp2 import shard

LORA: dict[str, Any] = {"r": 16, "target_modules": "all-linear"}
TINY = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 3, "vocab_size": 512}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 160}
LARGE = {**TINY, "hidden_size": 2048, "num_hidden_layers": 16, "vocab_size": 128256}
LARGE |= {"num_attention_heads": 32, "num_key_value_heads": 8, "intermediate_size": 8192}
LARGE |= {"tie_word_embeddings": True}
STEPS = 4


class Random(LightningModule):
    """A model of a shape with random weights, trained on random tokens."""

    def __init__(self, config: dict[str, Any], lora: bool, checkpointing: bool, offload: bool):
        super().__init__()
        self.config, self.lora = config, lora
        self.checkpointing, self.offload = checkpointing, offload
        self.model: Any = None

    def configure_model(self) -> None:
        """Build the model where the strategy wants it."""
        if self.model is not None:
            return
        from transformers import AutoConfig, AutoModelForCausalLM

        options = dict(self.config)
        config = AutoConfig.for_model(options.pop("model_type"), **options)
        self.model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        if self.lora:
            self.model = add_adapter(self.model, LORA)
        if self.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
            if self.lora:
                self.model.enable_input_require_grads()
        if self.device_mesh is not None:
            shard(self.model, self.device_mesh, str(self.trainer.precision))
        self.model.train()

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Return the loss on all tokens."""
        mask = torch.ones_like(batch)
        logits = self.model(input_ids=batch, attention_mask=mask, use_cache=False).logits
        return next_token_loss(logits, batch)

    def configure_optimizers(self) -> Any:
        """Return AdamW; DeepSpeed's own where it steps on the CPU."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if self.offload:
            from deepspeed.ops.adam import DeepSpeedCPUAdam

            return DeepSpeedCPUAdam(trained, lr=1e-5)
        return torch.optim.AdamW(trained, lr=1e-5)


class Clock(Callback):
    """Times the steps behind the first, and takes the peak of the GPU's memory over them."""

    def __init__(self) -> None:
        self.start, self.seconds = 0.0, 0.0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Begin behind the first step."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.monotonic()
        if args[-1] == 0:
            self.start = now
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        else:
            self.seconds = (now - self.start) / args[-1]


def strategy_named(name: str, device: str) -> Any:
    """Return Lightning's strategy of this name for one process."""
    if name == "single":
        return SingleDeviceStrategy(torch.device(device, 0) if device == "cuda" else device)
    if name == "ddp":
        return DDPStrategy()
    if name == "fsdp2":
        return ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1)
    offload = name.endswith("offload")
    stage = int(name.removeprefix("deepspeed_zero")[0])
    return HFDeepSpeedStrategy(stage=stage, offload_optimizer=offload, offload_parameters=offload)


def measure(options: argparse.Namespace, name: str, lora: bool) -> dict[str, float]:
    """Run the steps and return the bytes and seconds of a step."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = json.loads((Path(options.model) / "config.json").read_text(encoding="utf-8"))
    torch.manual_seed(0)
    module = Random(config, lora, options.gradient_checkpointing, name.endswith("offload"))
    rows = torch.randint(0, config["vocab_size"], (STEPS * options.batch, options.length))
    clock = Clock()
    trainer = Trainer(
        accelerator="gpu" if device == "cuda" else "cpu",
        devices=1,
        strategy=strategy_named(name, device),
        precision="bf16-mixed",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[clock],
        default_root_dir=tempfile.gettempdir(),
    )
    trainer.fit(module, DataLoader(rows, batch_size=options.batch))
    if device == "cuda":
        return {"bytes": torch.cuda.max_memory_allocated(), "seconds": clock.seconds}
    kept = [t for s in trainer.optimizers[0].state.values() for n, t in s.items() if n != "step"]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in kept}
    held |= {p.untyped_storage().data_ptr(): p.untyped_storage() for p in module.parameters()}
    return {"bytes": sum(s.nbytes() for s in held.values()), "seconds": clock.seconds}


def main() -> None:
    """Measure each case in a process of its own and print it next to the estimate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model")
    parser.add_argument("--strategy", nargs="+", choices=STRATEGIES, default=["single"])
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--measure", choices=("full", "lora"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    # PEFT calls what transformers has renamed.
    warnings.simplefilter("ignore", FutureWarning)
    if options.measure:
        found = measure(options, options.strategy[0], options.measure == "lora")
        print(json.dumps(found))
        return
    cuda = torch.cuda.is_available()
    if options.model is None:
        options.model = tempfile.mkdtemp()
        config = json.dumps(LARGE if cuda else TINY)
        (Path(options.model) / "config.json").write_text(config, encoding="utf-8")
    tokens = options.batch * options.length
    unit, scale = ("GiB", 2**30) if cuda else ("KiB", 2**10)
    what = "peak on the GPU" if cuda else "weights and optimiser state"
    print(f"{what}, bf16-mixed, AdamW, one process")
    print(f"{'':<24} {'':<5} {'estimated':>12} {'measured':>12} {'ratio':>6} {'s / step':>9}")
    for name in options.strategy if cuda else ["single"]:
        for kind in ("full", "lora"):
            size = model_size(options.model, LORA["r"] if kind == "lora" else 0)
            one = estimate(size, name, 1, tokens, True, options.gradient_checkpointing)
            # On the CPU the gradients are gone when the states are counted.
            expected = one.peak if cuda else one.states - 4 * size.trained
            words = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--strategy", name]
            words += ["--model", options.model]
            done = subprocess.run(
                [*words, "--measure", kind], capture_output=True, text=True, check=False
            )
            row = f"{name:<24} {kind:<5} {expected / scale:>8.2f} {unit}"
            if done.returncode:
                lines = done.stderr.strip().splitlines()
                print(f"{row} {'not measured':>12}: {lines[-1] if lines else done.returncode}")
                continue
            found = json.loads(done.stdout.splitlines()[-1])
            ratio = found["bytes"] / expected
            taken = found["bytes"] / scale
            print(f"{row} {taken:>8.2f} {unit} {ratio:>6.3f} {found['seconds']:>9.3f}")
    if cuda:
        print(f"{torch.cuda.get_device_name()}; {options.model}")
    else:
        print("no CUDA: a tiny model; rows of GPUs are not measured")


if __name__ == "__main__":
    main()
