"""The repair by projection against ten AdamW steps: time, and peak memory over plain inference.

    python benchmarks/low_rank.py [--shape small|10m|medium|100m|1b|8b] [--model FOLDER]
                                  [--lora] [--device cpu|cuda] [--dtype float32|bfloat16]

Each method runs in a process of its own, on the same model with random weights, the same instance
and batch. Memory is the peak after loading: resident memory on a CPU, allocated memory on a GPU.
With --lora the AdamW steps train a LoRA adapter of rank 16 in place of all weights. The answers of
a random model say nothing, so the search is told that its steps refuse; all forward passes are made
as they are in a real repair. Also times the spectra of all matrices. Run on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import disable_possible_user_warnings

from oneshot_lit.data import InlineInstance, Microworld, SafetyDataModule
from oneshot_lit.methods import (
    LanguageModelModule,
    LowRankRealignmentModule,
    OneShotRealignmentModule,
)
from oneshot_lit.methods.job import JobTrainer
from oneshot_lit.models.generation import Decoding
from oneshot_lit.models.linear_layers import chosen_layers, instance_factors
from oneshot_lit.spectral import gradient_singular_values

# hidden, intermediate, layers, heads, key-value heads, vocabulary
SHAPES = {
    "small": (256, 704, 4, 4, 4, 1024),
    "10m": (256, 704, 6, 4, 4, 10240),
    "medium": (512, 1408, 6, 8, 8, 8192),
    "wide": (1024, 2816, 6, 16, 16, 518),
    "100m": (768, 2048, 12, 12, 12, 16384),
    "1b": (2048, 5632, 22, 32, 4, 32000),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}
INSTANCE = InlineInstance("help me do something dangerous .", "sorry , i can not help with that .")
METHODS = ("inference", "low rank", "AdamW", "spectra")


class ToldRefusal(LowRankRealignmentModule):
    """The repair on a model whose answers mean nothing: the broken model answers, steps refuse."""

    asked = 0

    def instance_refused(self) -> bool:
        """Answer the prompt, and say what a real repair would find."""
        super().instance_refused()
        self.asked += 1
        return self.asked > 1


def build(folder: Path, shape: str, device: str, dtype: str) -> None:
    """Write a Llama of a shape with random weights and the micro-world's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from oneshot_lit.microworld.tokenizer import build_tokenizer

    hidden, wide, layers, heads, key_value, vocabulary = SHAPES[shape]
    tokenizer = build_tokenizer()
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=dtype,
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, dtype))
    with torch.device(device):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(default)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def reset_peak(device: str) -> None:
    """Forget the peak so far."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak(device: str) -> float:
    """Return the peak since `reset_peak`, in MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def instance_batch(module: Any) -> dict[str, torch.Tensor]:
    """Return the instance as one encoded row."""
    data = SafetyDataModule(instance=INSTANCE, batch_size=1)
    data.use_tokenizer(module.tokenizer)
    data.setup("fit")
    return {k: v.to(module.device) for k, v in next(iter(data.train_dataloader())).items()}


def measure(method: str, folder: str, device: str, dtype: str, lora: bool) -> dict[str, float]:
    """Run one method and return its seconds and peak MiB after loading."""
    common: dict[str, Any] = {"dtype": dtype, "decoding": Decoding(max_new_tokens=8)}
    if method in ("inference", "spectra"):
        module: Any = LanguageModelModule(folder, **common)
    elif method == "low rank":
        module = ToldRefusal(folder, guard=Microworld("guard"), **common)
    else:
        peft = {"r": 16, "target_modules": "all-linear"} if lora else None
        module = OneShotRealignmentModule(
            folder,
            select_best=False,
            peft=peft,
            optimizer=lambda p: torch.optim.AdamW(p, lr=2e-5),
            **common,
        )
    module.configure_model()
    module.to(device)
    extra: dict[str, float] = {}
    reset_peak(device)
    start = time.monotonic()
    if method == "inference":
        module.eval()
        batch = instance_batch(module)
        with torch.no_grad():
            module.generate({k: batch[k] for k in ("input_ids", "attention_mask")})
    elif method == "spectra":
        module.eval()
        layers = chosen_layers(module.model, ["*"])
        factors, _ = instance_factors(module, layers, instance_batch(module))
        pairs = list(factors.values())
        for _ in range(2):
            _wait(device)
            begin = time.monotonic()
            for x, d in pairs:
                gradient_singular_values(x, d)
        _wait(device)
        extra = {"spectra_seconds": time.monotonic() - begin, "matrices": len(pairs)}
    elif isinstance(module, LowRankRealignmentModule):
        where = tempfile.gettempdir()
        job = JobTrainer("gpu" if device == "cuda" else "cpu", devices=1, default_root_dir=where)
        module.run(job, SafetyDataModule(instance=INSTANCE, batch_size=1))
    else:
        trainer = Trainer(
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            max_epochs=10,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tempfile.gettempdir(),
        )
        trainer.fit(module, SafetyDataModule(instance=INSTANCE, batch_size=1))
    _wait(device)
    return {"seconds": time.monotonic() - start, "peak": peak(device), **extra}


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Run every method in a process of its own and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="100m")
    parser.add_argument("--model", help="a broken model's folder, in place of random weights")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.method:
        disable_possible_user_warnings()
        found = measure(options.method, options.folder, options.device, options.dtype, options.lora)
        print(json.dumps(found))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.model or Path(temporary) / "model").absolute()
        if options.model is None:
            build(folder, options.shape, options.device, options.dtype)
        size = sum(f.stat().st_size for f in folder.glob("*.safetensors")) / 2**20
        results = {}
        for method in METHODS:
            words = [sys.executable, __file__, "--method", method, "--folder", str(folder)]
            words += ["--device", options.device, "--dtype", options.dtype]
            words += ["--lora"] if options.lora else []
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            if done.returncode:
                sys.exit(done.stderr)
            results[method] = json.loads(done.stdout.splitlines()[-1])
    base = results["inference"]["peak"]
    steps = "ten AdamW steps" + (" on a LoRA adapter" if options.lora else "")
    name = options.model or options.shape
    print(f"{name}: {size:.0f} MiB of {options.dtype} weights, {options.device}")
    for name, key in (("repair by projection", "low rank"), (steps, "AdamW")):
        found = results[key]
        print(
            f"  {name:<36} {found['seconds']:7.2f} s   {found['peak'] - base:8.0f} MiB over "
            f"inference ({base:.0f} MiB)"
        )
    low, adam = results["low rank"], results["AdamW"]
    print(f"seconds, AdamW / projection   {adam['seconds'] / low['seconds']:.2f}")
    extra = (adam["peak"] - base) / max(low["peak"] - base, 1.0)
    print(f"extra memory, AdamW / projection   {extra:.1f}")
    spectra = results["spectra"]
    print(f"spectra of {spectra['matrices']} matrices   {1e3 * spectra['spectra_seconds']:.1f} ms")


if __name__ == "__main__":
    main()
