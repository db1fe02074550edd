"""The repair by projection on a real model: seconds of its parts, and peak memory over inference.

    python benchmarks/low_rank_parts.py --model runs/real/attacked/model [--config FILE]

The repair is the command of the config, `configs/real/low_rank.yaml` if none is given. Inference
answers 32 of its harmful development prompts at once, with as many new tokens. Each runs in a
process of its own; memory is the peak of the whole process. CPU seconds are of all threads
together, and say more than the clock where other work runs beside. The target is a ratio of at most
2, and 90 seconds for SmolLM2-135M with its 210 matrices.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import disable_possible_user_warnings

from oneshot_lit.cli.main import main as oneshot_lit
from oneshot_lit.data import Fairytale, PromptSet, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule, LowRankRealignmentModule
from oneshot_lit.methods.posttuning.low_rank import step
from oneshot_lit.models import linear_layers
from oneshot_lit.models.generation import Decoding

# Part -> where its function is looked up. One part may call another, whose time is not its own.
PARTS: dict[str, tuple[Any, str]] = {
    "loading": (LowRankRealignmentModule, "configure_model"),
    "backward pass of the instance": (step, "instance_factors"),
    "forward sweep of the guard": (step, "projected_inputs"),
    "projection": (linear_layers, "guarded_inputs"),
    "singular vectors": (step, "triplets"),
    "development prompts": (LowRankRealignmentModule, "score_loaders"),
}
Times = dict[str, list[float]]


def measured(times: Times, running: list[list[float]], part: str, function: Any) -> Any:
    """Return the function, whose calls add to ``[calls, seconds, CPU seconds]`` of its part."""

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.monotonic(), time.process_time()
        running.append([0.0, 0.0])
        try:
            return function(*args, **kwargs)
        finally:
            spent = [time.monotonic() - start[0], time.process_time() - start[1]]
            inner = running.pop()
            total = times.setdefault(part, [0.0, 0.0, 0.0])
            total[0] += 1
            for i in (0, 1):
                total[1 + i] += spent[i] - inner[i]
                if running:
                    running[-1][i] += spent[i]

    return timed


def repair(model: str, config: str) -> dict[str, Any]:
    """Run the repair's command; return the times of its parts."""
    times: Times = {}
    running: list[list[float]] = []
    for part, (owner, name) in PARTS.items():
        setattr(owner, name, measured(times, running, part, getattr(owner, name)))
    with tempfile.TemporaryDirectory() as root:
        words = ["edit", "--config", config, "--model.model_name_or_path", model]
        words += ["--trainer.default_root_dir", root, "--trainer.accelerator", "cpu"]
        words += ["--trainer.enable_progress_bar", "false"]
        command: Callable[[list[str]], int] = measured(times, running, "the rest", oneshot_lit)
        if code := command(words):
            sys.exit(code)
    return {"times": times}


def inference(model: str) -> dict[str, Any]:
    """Answer 32 prompts at once."""
    module = LanguageModelModule(model, decoding=Decoding(max_new_tokens=8))
    module.configure_model()
    module.eval()
    prompts = PromptSet(Fairytale("harmful_dev", size=32), "harmful")
    data = SafetyDataModule(val_sets={"harmful": prompts}, eval_batch_size=32)
    data.use_tokenizer(module.tokenizer)
    data.setup("validate")
    with torch.no_grad():
        for batch in data.val_dataloader()[0]:
            module.generate(batch)
    return {}


def peak() -> float:
    """Return the peak resident memory of this process, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def main() -> None:
    """Run both in processes of their own, and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="the broken model")
    parser.add_argument("--config", default="configs/real/low_rank.yaml")
    parser.add_argument("--only", choices=("inference", "repair"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        disable_possible_user_warnings()
        by_repair = options.only == "repair"
        seen = repair(options.model, options.config) if by_repair else inference(options.model)
        print(json.dumps({**seen, "peak": peak(), "threads": torch.get_num_threads()}))
        return
    results = {}
    for only in ("inference", "repair"):
        words = [sys.executable, __file__, "--model", options.model, "--config", options.config]
        done = subprocess.run([*words, "--only", only], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        results[only] = json.loads(done.stdout.splitlines()[-1])
    times = results["repair"]["times"]
    threads, load = results["repair"]["threads"], os.getloadavg()[0]
    print(f"{options.model}, {threads} threads, load {load:.1f}")
    for part, (calls, seconds, cpu) in times.items():
        print(f"  {part:<30} {int(calls):4} calls {seconds:8.1f} s {cpu:8.1f} CPU s")
    total = [sum(each[i] for each in times.values()) for i in (1, 2)]
    print(f"  {'all':<41} {total[0]:8.1f} s {total[1]:8.1f} CPU s")
    own, base = results["repair"]["peak"], results["inference"]["peak"]
    print(f"peak memory: repair {own:.0f} MiB, inference {base:.0f} MiB, ratio {own / base:.2f}")


if __name__ == "__main__":
    main()
