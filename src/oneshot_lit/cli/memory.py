"""Print what a training step needs on each GPU, for each strategy and number of processes.

oneshot-lit memory --model Qwen/Qwen2.5-7B --processes 1 2 4 8 --precision bf16-mixed --lora 16
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import pandas

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError
from oneshot_lit.models.memory import STRATEGIES, estimate, model_size

GIB = 2**30


def run_memory_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit memory``."""
    options = _options(arguments)
    # PEFT calls what transformers has renamed.
    warnings.simplefilter("ignore", FutureWarning)
    size = model_size(options.model, options.lora)
    mixed, checkpointing = options.precision == "bf16-mixed", options.gradient_checkpointing
    tokens = options.batch * options.length
    estimates = [
        estimate(size, strategy, count, tokens, mixed, checkpointing)
        for strategy in options.strategies
        for count in sorted(options.processes)
        if strategy != "single" or count == 1
    ]
    if not estimates:
        raise OneShotError("--processes: the strategy single has one process; give 1.")
    print(
        f"{options.model}: {size.parameters:,} parameters, {size.trained:,} trained; "
        f"{options.precision}, batch {options.batch} x {options.length}; GiB on each GPU, and on "
        "the CPU for each\n"
    )
    table = pandas.DataFrame([vars(one) | {"peak": one.peak} for one in estimates])
    sizes = ["states", "temporary", "activations", "host", "peak"]
    table[sizes] = table[sizes] / GIB
    table[""] = ["✓" if peak <= options.gpu_gib else "✗" for peak in table["peak"]]
    table = table.rename(columns={"processes": "GPUs", "host": "CPU"})
    print(
        table.to_string(index=False, float_format="%.1f", formatters={"strategy": "{:<24}".format})
    )

    fitting = [one for one in estimates if one.peak <= options.gpu_gib * GIB]
    # STRATEGIES begins with the simplest; FSDP2 and ZeRO-3 are equally simple.
    rank = {name: n for n, name in enumerate(STRATEGIES)}
    rank["deepspeed_zero3"] = rank["fsdp2"]
    best = min(estimates, key=lambda one: one.peak)
    if fitting:
        best = min(fitting, key=lambda one: (rank[one.strategy], one.processes))
    start, end = "The simplest that fits is", "leave a few GiB for what is not counted."
    if not fitting:
        start = f"Nothing fits into {options.gpu_gib:g} GiB: the least is"
        end = "try --lora 16 or more GPUs."
    host = f" and {best.host / GIB:.1f} GiB of CPU memory for each" if best.host else ""
    gpus = "one GPU" if best.processes == 1 else f"{best.processes} GPUs"
    print(f"\n{start} {best.strategy} on {gpus}: {best.peak / GIB:.1f} GiB{host}; {end}")
    return 0


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = CommandParser(
        "memory",
        "Estimate how much memory a training step with AdamW needs on each GPU, without a GPU. "
        "Only the model's config is read. docs/memory.md has the formulas.",
        "--model path/to/model --processes 1 8 --precision bf16-mixed --gradient-checkpointing",
    )
    add = parser.add_argument
    add("--model", required=True, help="a folder, a config.json or a hub name")
    add("--processes", type=int, nargs="+", default=[1, 2, 4, 8], help="numbers of GPUs")
    add("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    add("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    add("--lora", type=int, default=0, metavar="R", help="train LoRA of rank R on linear layers")
    add("--batch", type=int, default=1, help="rows in each process (default 1)")
    add("--length", type=int, default=512, help="tokens in a row (default 512)")
    add("--gradient-checkpointing", action="store_true")
    add("--gpu-gib", type=float, default=80, help="memory of a GPU (default 80)")
    options = parser.parse_args(arguments)
    if min(*options.processes, options.batch, options.length) < 1 or options.lora < 0:
        raise OneShotError("--processes, --batch, --length and --lora must be above 0.")
    return options
