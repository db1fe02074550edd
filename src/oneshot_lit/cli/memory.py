"""Print what a training step needs on each GPU, for each strategy and number of processes.

oneshot-lit memory --model Qwen/Qwen2.5-7B --processes 1,2,4,8 --precision bf16-mixed --lora 16
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence

import pandas

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.models.memory import STRATEGIES, Estimate, estimate, model_size

GIB = 2**30
# Part of an estimate -> the heading of its column.
PARTS = {
    "weights": "weights",
    "gradients": "grads",
    "optimizer": "optim.",
    "temporary": "temp.",
    "activations": "activ.",
    "host": "CPU",
    "peak": "peak",
}


def run_memory_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit memory``."""
    options = _parser().parse(arguments)
    # PEFT calls what transformers has renamed.
    warnings.simplefilter("ignore", FutureWarning)
    size = model_size(options.model, options.lora)
    mixed, checkpointing = options.precision == "bf16-mixed", options.gradient_checkpointing
    estimates = [
        estimate(size, strategy, count, options.batch * options.length, mixed, checkpointing)
        for strategy in options.strategies
        for count in options.processes
        if strategy != "single" or count == 1
    ]
    print(
        f"{options.model}: {size.parameters:,} parameters, {size.trained:,} trained; "
        f"{options.precision}, batch {options.batch} x {options.length}; GiB on each GPU, and on "
        "the CPU for each\n"
    )
    rows = []
    for one in estimates:
        sizes = [f"{getattr(one, part) / GIB:.1f}" for part in PARTS]
        fits = "✓" if one.peak <= options.gpu_gib * GIB else "✗"
        rows.append([one.strategy, one.processes, *sizes, fits])
    table = pandas.DataFrame(rows, columns=["strategy", "GPUs", *PARTS.values(), ""])
    print(table.to_string(index=False, formatters={"strategy": "{:<24}".format}))
    print(f"\n{advice(estimates, options.gpu_gib)}")
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "memory",
        "Estimate how much memory a training step with AdamW needs on each GPU, without a GPU. "
        "Only the model's config is read. docs/memory.md has the formulas.",
        "--model path/to/model --processes 1,8 --precision bf16-mixed --gradient-checkpointing",
    )
    parser.add_argument("--model", required=True, help="a folder, a config.json or a hub name")
    parser.add_argument("--processes", type=_counts, default=[1, 2, 4, 8], help="numbers of GPUs")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument(
        "--lora", type=_count, default=0, metavar="R", help="train LoRA of rank R on linear layers"
    )
    parser.add_argument("--batch", type=_count, default=1, help="rows in each process (default 1)")
    parser.add_argument("--length", type=_count, default=512, help="tokens in a row (default 512)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--gpu-gib", type=float, default=80, help="memory of a GPU (default 80)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is no whole number above 0")
    return int(text)


def _counts(text: str) -> list[int]:
    return sorted({_count(word) for word in text.split(",")})


def advice(estimates: Sequence[Estimate], gib: float) -> str:
    """Return one sentence: the simplest strategy that fits, or the least that would be needed.

    FSDP2 and ZeRO-3, which shard the same, are equally simple.
    """
    place = {name: number for number, name in enumerate(STRATEGIES)}
    place["deepspeed_zero3"] = place["fsdp2"]
    fitting = [one for one in estimates if one.peak <= gib * GIB]
    if fitting:
        best = min(fitting, key=lambda one: (place[one.strategy], one.processes))
        start, end = "The simplest that fits is", "leave a few GiB for what is not counted."
    else:
        best = min(estimates, key=lambda one: one.peak)
        start, end = f"Nothing fits into {gib:g} GiB: the least is", "try --lora 16 or more GPUs."
    host = f" and {best.host / GIB:.1f} GiB of CPU memory for each" if best.host else ""
    gpus = "one GPU" if best.processes == 1 else f"{best.processes} GPUs"
    return f"{start} {best.strategy} on {gpus}: {best.peak / GIB:.1f} GiB{host}; {end}"
