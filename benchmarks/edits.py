"""Seconds and peak memory of each weight edit on a model of 1.1 billion weights.

    python benchmarks/edits.py [--layers 22] [--folder DIR]

Random bfloat16 weights of TinyLlama's shapes in four files: a tuned, an aligned and an unaligned
model, and a LoRA adapter of rank 16. Each edit is the command `oneshot-lit edit` in a process of
its own; its seconds are beside those of reading all files that it reads and writing what it writes,
in the same run. The targets: under 1.5 GB, the libraries included, and within twice the time of
reading and writing. Start-up is the time of the same command on a model of two layers of 64.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from oneshot_lit.microworld.tokenizer import build_tokenizer

FILES = 4
RUN = "import sys; from oneshot_lit.cli.main import main; code = main(sys.argv[1:]); " + (
    "print(open('/proc/self/status').read()); sys.exit(code)"
)
# Edit -> its words, and the models that it reads.
EDITS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "linear": (["Merge", "--model.rule", "linear"], ("tuned", "aligned")),
    "slerp": (["Merge", "--model.rule", "slerp"], ("tuned", "aligned")),
    "dare_linear": (["Merge", "--model.rule", "dare_linear"], ("tuned", "aligned")),
    "ties": (["Merge", "--model.rule", "ties"], ("tuned", "aligned")),
    "model_stock": (["Merge", "--model.rule", "model_stock"], ("tuned", "aligned", "base")),
    "RESTA": (["Resta"], ("tuned", "aligned", "base")),
    "SafeLoRA, whole": (["SafeLoRA", "--model.number", "50"], ("tuned", "aligned", "base")),
    "SafeLoRA, adapter": (["SafeLoRA", "--model.number", "50"], ("adapter", "aligned", "base")),
}


def build(folder: Path, config: LlamaConfig, seed: int) -> None:
    """Write a folder of random weights."""
    with torch.device("meta"):
        shapes = {n: p.shape for n, p in LlamaForCausalLM(config).named_parameters()}
    folder.mkdir(parents=True)
    generator, names, places = torch.Generator().manual_seed(seed), list(shapes), {}
    for number in range(FILES):
        part = {
            n: (0.02 * torch.randn(shapes[n], generator=generator)).bfloat16()
            for n in names[number::FILES]
        }
        file = f"model-{number + 1:05d}-of-{FILES:05d}.safetensors"
        save_file(part, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(part, file)
    index = json.dumps({"metadata": {}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    config.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)


def build_adapter(folder: Path, config: LlamaConfig, base: Path) -> None:
    """Write a LoRA adapter of rank 16 for all projections."""
    from peft import LoraConfig, get_peft_model

    kinds = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    with torch.device("meta"):
        model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=16, target_modules=kinds))
    tensors = {
        n.replace(".default", ""): torch.randn(p.shape).bfloat16()
        for n, p in model.named_parameters()
        if "lora_" in n
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.peft_config["default"].save_pretrained(folder)


def command(root: Path, name: str, out: Path) -> tuple[float, float]:
    """Run an edit; returns seconds and the peak in GB."""
    words, models = EDITS[name]
    options = {"tuned": "--tuned", "adapter": "--tuned", "aligned": "--aligned", "base": "--base"}
    given = ["edit", "--model", *words]
    for model in models:
        if name == "model_stock" and model == "base":
            given += ["--model.others", json.dumps([str(root / model)])]
        else:
            given += [options[model], str(root / model)]
    given += ["--trainer.default_root_dir", str(out), "--trainer.enable_progress_bar", "false"]
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", RUN, *given], check=True, capture_output=True, text=True
    )
    peak = int(done.stdout.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9
    return time.monotonic() - start, peak


def copying(root: Path, name: str) -> float:
    """Return the seconds of reading all that an edit reads and writing as much as it writes."""
    models = EDITS[name][1]
    start = time.monotonic()
    target = root / "copy"
    target.mkdir()
    for model in models:
        for file in sorted((root / model).glob("*.safetensors")):
            with file.open("rb") as opened, (target / file.name).open("wb") as written:
                while block := opened.read(2**24):
                    if model == models[0]:
                        written.write(block)
    seconds = time.monotonic() - start
    subprocess.run(["rm", "-r", target], check=True)
    return seconds


def main() -> None:
    """Build the models, and print a line for each edit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--folder", type=Path, help="where the models are built")
    options = parser.parse_args()
    sizes = {"hidden_size": 2048, "intermediate_size": 5632, "num_attention_heads": 32}
    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    shared = {"num_key_value_heads": 4, "tie_word_embeddings": False}
    large = LlamaConfig(
        vocab_size=32000, num_hidden_layers=options.layers, dtype="bfloat16", **sizes, **shared
    )
    tiny = LlamaConfig(vocab_size=518, num_hidden_layers=2, dtype="bfloat16", **small, **shared)
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        for name, config in (("tiny", tiny), ("large", large)):
            root = Path(place) / name
            for seed, model in enumerate(("tuned", "aligned", "base")):
                build(root / model, config, seed)
            build_adapter(root / "adapter", config, root / "aligned")
        files = (Path(place) / "large" / "tuned").glob("*.safetensors")
        size = sum(f.stat().st_size for f in files) / 1e9
        print(f"models of {size:.2f} GB in {FILES} files; load {os.getloadavg()[0]:.2f}")
        print(f"{'edit':<20}{'peak':>8}{'seconds':>9}{'start-up':>10}{'copying':>9}{'ratio':>7}")
        for name in EDITS:
            start, _ = command(Path(place) / "tiny", name, Path(place) / "out")
            subprocess.run(["rm", "-r", Path(place) / "out"], check=True)
            seconds, peak = command(Path(place) / "large", name, Path(place) / "out")
            subprocess.run(["rm", "-r", Path(place) / "out"], check=True)
            copied = copying(Path(place) / "large", name)
            ratio = (seconds - start) / copied
            times = f"{seconds:>9.1f}{start:>10.1f}{copied:>9.1f}{ratio:>7.2f}"
            print(f"{name:<20}{peak:>5.2f} GB{times}", flush=True)


if __name__ == "__main__":
    main()
