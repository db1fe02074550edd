"""Print what a training step needs of each GPU, for each strategy and number of processes.

oneshot-lit memory --model llama-8b --processes 1,2,4,8 --precision bf16-mixed --lora 16
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.models.memory import STRATEGIES, Estimate, estimates, simplest
from oneshot_lit.models.model_facts import ModelFacts, Plan, model_facts
from oneshot_lit.models.model_shapes import SHAPES

GIB = 2**30
MOMENTS = {"adamw": 2, "sgd": 0, "sgd-momentum": 1}
# Part -> the head of its column.
PARTS = {
    "weights": "weights",
    "master": "master",
    "optimizer": "optim.",
    "gradients": "grads",
    "buckets": "buckets",
    "whole": "whole",
    "gathered": "gather.",
    "activations": "activ.",
    "step": "step",
    "peak": "peak",
    "host": "host",
}

DESCRIPTION = """\
Say how much memory a training step needs on each GPU, before there is a GPU. Nothing is downloaded
and no weights are read: the model's config is enough. One table for each model; a cell is the
estimated peak in GiB, with a check mark if it fits into --gpu-gib. Below stands the simplest
strategy that fits.

  single                   one GPU, everything on it
  ddp                      everything on each GPU; more rows at once, no memory saved
  deepspeed_zero1          the optimiser's state is shared out over the GPUs
  deepspeed_zero2          gradients, too (without --accumulate the same as zero1)
  fsdp2                    weights, too; kept in float32, gathered in bfloat16 under bf16-mixed
  deepspeed_zero3          weights, too; kept in bfloat16 with a float32 copy under bf16-mixed
  deepspeed_zero3_offload  all of that in CPU memory; slow
Offload may need less than a GiB on the GPU; its CPU memory stands behind the +.
"""


def run_memory_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit memory``."""
    options = _parser().parse(arguments)
    if options is None:
        return 0
    counts, plan = _processes(options.processes), _plan(options)
    if not math.isfinite(options.gpu_gib) or options.gpu_gib <= 0:
        raise OneShotError(f"memory: --gpu-gib {options.gpu_gib}: give a number above 0.")
    peft = {"r": options.lora, "target_modules": "all-linear"} if options.lora else None
    limit = int(options.gpu_gib * GIB)
    # Tables are not cut where the output goes to a file.
    console = Console(highlight=False, width=None if Console().is_terminal else 120)
    written = []
    with warnings.catch_warnings():
        # PEFT calls what transformers has renamed.
        warnings.simplefilter("ignore", FutureWarning)
        models = [model_facts(name, peft=peft) for name in options.model]
    for model in models:
        found = list(estimates(model, counts, plan))
        console.print(_title(model, options), soft_wrap=True)
        console.print(_overview(found, counts, limit))
        if options.parts:
            console.print("Parts in GiB:")
            console.print(_parts(found))
        advice = recommendation(model, found, limit)
        console.print(advice, soft_wrap=True)
        console.print()
        written.append(_as_json(model, found, limit, advice))
    if options.json is not None:
        target = Path(options.json)
        try:
            write_json_atomically(target, {"options": _settings(options), "models": written})
        except OSError as error:
            raise OneShotError(f"{target}: cannot be written ({error.strerror}).") from error
    return 0


def _parser() -> CommandParser:
    parser = CommandParser(
        "memory",
        DESCRIPTION,
        "--model llama-8b --processes 1,2,4,8 --precision bf16-mixed --gradient-checkpointing",
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "--model",
        action="append",
        required=True,
        metavar="NAME",
        help=f"a model's folder, its config.json, or a known shape: {', '.join(SHAPES)}; "
        "can be repeated",
    )
    parser.add_argument("--processes", default="1,2,4,8", help="numbers of GPUs (default 1,2,4,8)")
    parser.add_argument("--batch", type=int, default=1, help="rows of each process (default 1)")
    parser.add_argument("--length", type=int, default=512, help="tokens of a row (default 512)")
    parser.add_argument(
        "--precision",
        choices=("32-true", "bf16-mixed"),
        default="32-true",
        help="as trainer.precision (default 32-true)",
    )
    parser.add_argument(
        "--optimizer", choices=tuple(MOMENTS), default="adamw", help="(default adamw)"
    )
    parser.add_argument(
        "--lora", type=int, default=0, metavar="R", help="train LoRA of rank R on all linear layers"
    )
    parser.add_argument(
        "--gradient-checkpointing", action="store_true", help="as model.gradient_checkpointing"
    )
    parser.add_argument(
        "--accumulate", type=int, default=1, metavar="N", help="trainer.accumulate_grad_batches"
    )
    parser.add_argument("--gpu-gib", type=float, default=80, help="memory of a GPU (default 80)")
    parser.add_argument("--parts", action="store_true", help="show what each peak consists of")
    parser.add_argument("--json", metavar="FILE", help="also write everything, in bytes")
    return parser


def _processes(text: str) -> list[int]:
    """Return the numbers of processes, sorted."""
    try:
        counts = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise OneShotError(f"memory: --processes '{text}': give numbers such as 1,2,4,8.") from None
    if counts[0] < 1:
        raise OneShotError(f"memory: --processes {counts[0]}: at least one process is needed.")
    return counts


def _plan(options: argparse.Namespace) -> Plan:
    """Return the plan of the options."""
    for name, least in (("batch", 1), ("length", 1), ("accumulate", 1), ("lora", 0)):
        if getattr(options, name) < least:
            raise OneShotError(f"memory: --{name} {getattr(options, name)}: at least {least}.")
    return Plan(
        batch=options.batch,
        length=options.length,
        mixed=options.precision == "bf16-mixed",
        moments=MOMENTS[options.optimizer],
        gradient_checkpointing=options.gradient_checkpointing,
        accumulate=options.accumulate,
    )


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    return {k: v for k, v in vars(options).items() if k not in ("model", "json", "parts")}


def _title(model: ModelFacts, options: argparse.Namespace) -> str:
    """Return what is estimated, in one line."""
    trained = f"LoRA r={options.lora}: " if options.lora else ""
    checkpointing = ", gradient checkpointing" if options.gradient_checkpointing else ""
    accumulate = f", {options.accumulate} batches a step" if options.accumulate > 1 else ""
    return (
        f"{model.name}: {model.parameters:,} parameters, {trained}{model.trained:,} trained; "
        f"{options.precision}, {options.optimizer}, batch {options.batch} x {options.length}"
        f"{checkpointing}{accumulate}; GiB on each GPU (+ GiB of CPU memory for each)"
    )


def _overview(found: list[Estimate], counts: list[int], limit: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    table.add_column("strategy", no_wrap=True)
    for count in counts:
        table.add_column(f"{count} GPU{'s' * (count > 1)}", justify="right", no_wrap=True)
    cells = {(one.strategy, one.processes): one for one in found}
    for strategy in STRATEGIES:
        row = [cells.get((strategy, count)) for count in counts]
        table.add_row(strategy, *(_cell(one, limit) for one in row))
    return table


def _cell(one: Estimate | None, limit: int) -> str:
    """Return a peak in GiB with a mark if it fits: ``61.2 ✓``."""
    if one is None:
        return "-  "
    host = f" + {one.host / GIB:.1f}" if one.host else ""
    return f"{one.peak / GIB:.1f}{host} {'✓' if one.peak <= limit else '✗'}"


def _parts(found: list[Estimate]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0, pad_edge=False)
    table.add_column("GPUs", justify="right", no_wrap=True)
    table.add_column("strategy", no_wrap=True)
    for head in PARTS.values():
        table.add_column(head, justify="right", no_wrap=True)
    for one in found:
        sizes = [f"{getattr(one, part) / GIB:.1f}" for part in PARTS]
        table.add_row(str(one.processes), one.strategy, *sizes)
    return table


def recommendation(model: ModelFacts, found: list[Estimate], limit: int) -> str:
    """Return one sentence: the simplest strategy that fits, or what there would have to be."""
    best = simplest(found, limit)
    size = f"{limit / GIB:g} GiB"
    if best is None:
        least = min(found, key=lambda one: one.peak)
        return (
            f"{model.name} does not fit into {size}: the least is {least.peak / GIB:.1f} GiB, with "
            f"{least.strategy} on {least.processes}; try more GPUs, --lora 16, "
            "--gradient-checkpointing or a shorter --length."
        )
    gpus = "one GPU" if best.processes == 1 else f"{best.processes} GPUs"
    host = f" and {best.host / GIB:.1f} GiB of CPU memory for each" if best.host else ""
    return (
        f"{model.name} fits into {size} with {best.strategy} on {gpus}: about "
        f"{best.peak / GIB:.1f} GiB{host}; leave one or two GiB for what is not counted."
    )


def _as_json(
    model: ModelFacts, found: list[Estimate], limit: int, advice: str
) -> dict[str, object]:
    return {
        "model": model.name,
        "parameters": model.parameters,
        "trained": model.trained,
        "tied": model.tied,
        "layers": model.layers,
        "largest_layer": model.largest_layer[0],
        "recommendation": advice,
        "estimates": [{**one.as_dict(), "fits": one.peak <= limit} for one in found],
    }
