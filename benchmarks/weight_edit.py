"""Memory of editing a folder of safetensors tensor by tensor, against loading the models whole.

The folder has random bfloat16 weights of a Llama's shapes in two files. Each way runs in a process
of its own and reports its peak memory, the libraries included.

    python benchmarks/weight_edit.py --gigabytes 3
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from oneshot_lit.models.edit_files import TensorFiles, edit_folder
from oneshot_lit.models.weight_files import weight_files

WAYS = ("tensor by tensor", "whole models")
# The shapes of a layer of Llama 3.2 3B.
SHAPES = [(3072, 3072), (1024, 3072), (1024, 3072), (3072, 3072)]
SHAPES += [(8192, 3072), (8192, 3072), (3072, 8192)]


def build(folder: Path, gigabytes: float) -> None:
    """Write a folder of about so many gigabytes in two files."""
    folder.mkdir()
    layer = sum(a * b for a, b in SHAPES) * 2
    layers = max(2, round(gigabytes * 1e9 / layer))
    for number in range(2):
        part = {}
        for each in range(number, layers, 2):
            for n, shape in enumerate(SHAPES):
                part[f"model.layers.{each}.part{n}.weight"] = torch.randn(shape).bfloat16()
        save_file(part, folder / f"model-{number + 1:05d}-of-00002.safetensors")
    places = {}
    for file in sorted(folder.glob("*.safetensors")):
        places |= dict.fromkeys(load_file(file), file.name)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")


def halfway(name: str, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean of the two models' weights."""
    return torch.lerp(weights["tuned"].float(), weights["base"].float(), 0.5)


def run(way: str, root: Path) -> None:
    """Edit in one way; print seconds and peak memory as JSON."""
    torch.set_num_threads(1)
    folders = {name: root / name for name in ("tuned", "base")}
    target = root / "out"
    target.mkdir()
    start = time.monotonic()
    if way == "tensor by tensor":
        edit_folder(TensorFiles(folders), target, halfway)
    else:
        models = {
            name: {k: t for file in weight_files(folder) for k, t in load_file(file).items()}
            for name, folder in folders.items()
        }
        edited = {
            name: halfway(name, {k: m[name] for k, m in models.items()}).to(tensor.dtype)
            for name, tensor in models["tuned"].items()
        }
        save_file(edited, target / "model.safetensors")
    seconds = time.monotonic() - start
    # Not `ru_maxrss`, which a process takes over from the one that started it.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> None:
    """Build the two models, edit them both ways, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0, help="size of each model")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        run(options.way, options.root)
        return
    peaks = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        build(root / "tuned", options.gigabytes)
        subprocess.run(["cp", "-r", root / "tuned", root / "base"], check=True)
        size = sum(f.stat().st_size for f in (root / "tuned").glob("*.safetensors")) / 1e9
        print(f"two models of {size:.2f} GB each, in two files each")
        for way in WAYS:
            words = [sys.executable, __file__, "--way", way, "--root", str(root)]
            done = subprocess.run(words, check=True, capture_output=True, text=True)
            result = json.loads(done.stdout.splitlines()[-1])
            peaks[way] = result["peak"]
            print(f"{way:<18} {result['peak'] / 1e9:6.2f} GB {result['seconds']:7.1f} s")
            subprocess.run(["rm", "-r", root / "out"], check=True)
    print(f"ratio of the peaks: {peaks['whole models'] / peaks['tensor by tensor']:.1f}")


if __name__ == "__main__":
    main()
