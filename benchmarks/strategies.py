"""What our strategies cost: a step of each against the same engine driven by a plain loop.

    python benchmarks/strategies.py [--strategies single ddp fsdp2 zero1 zero2 zero3]
                                    [--processes 2] [--threads 1] [--device cpu|cuda]
                                    [--precision 32-true|bf16-mixed] [--shape 10m|medium|100m|1b|8b]
                                    [--rounds 3] [--batch-size 4] [--length 128]

Ours: `LanguageModelModule` and `SafetyDataModule` under Lightning's Trainer, with the CLI's CSV
logger, which gets loss, rate and gradient norm at every tenth step. Bare: the same Hugging Face
model in a PyTorch loop that logs nothing; alone, in `DistributedDataParallel`, cut by
`fully_shard` (each decoder layer, then the root), or in `deepspeed.initialize` with the strategy's
own config. Both take the same rows, collated alike, with fused AdamW and no schedule, in the same
processes, over gloo or NCCL; both must end with the same loss (to 1e-4; in bf16-mixed to 1e-2), or
the script exits with 1.

A step is a whole turn of the loop, from the moment it has a batch until it has the next one. On a
CPU a step of the one side follows a step of the other, so that a shared machine slows both; on a
GPU ten follow ten between synchronisations, so that a loop that waits for the GPU is not excused.
The ratio is that of the medians; the one of means holds the logged step, too, and every hiccup of
the machine. Run on an idle machine.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import disable_possible_user_warnings
from torch import Tensor, distributed
from torch.utils.data import DataLoader
from transformers.utils.logging import disable_progress_bar

sys.path.insert(0, str(Path(__file__).parent))
from low_rank import SHAPES, build
from oneshot_lit.data import Conversation, ConversationSource, Message, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.microworld.language import vocabulary
from oneshot_lit.models.loading import load_model, load_tokenizer
from oneshot_lit.models.loss import next_token_loss
from oneshot_lit.strategies import FSDP2Strategy, HFDeepSpeedStrategy

STRATEGIES = ("single", "ddp", "fsdp2", "zero1", "zero2", "zero3")
GOAL = 1.10
# Ours logs one of the timed steps.
WARM_UP, TIMED = 2, 10
SECONDS = 1200


class Words(ConversationSource):
    """Random words, as many of them labelled in each row as in any other."""

    def __init__(self, size: int, length: int) -> None:
        super().__init__()
        self.size, self.length = size, length

    def rows(self) -> list[Conversation]:
        """Return rows of more than `length` tokens, to be cut."""
        draw, words = random.Random(0), vocabulary()

        def text(size: int) -> str:
            return " ".join(draw.choices(words, k=size))

        turns = [
            (Message("user", "help me ."), Message("assistant", text(self.length)))
            for _ in range(self.size)
        ]
        return [Conversation(messages) for messages in turns]


@dataclass
class Case:
    """What both sides train."""

    name: str
    folder: str
    cuda: bool
    precision: str
    batch_size: int
    length: int
    rank: int
    world_size: int

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.rank) if self.cuda else torch.device("cpu")

    @property
    def block(self) -> int:
        """How many steps one side makes before the other one goes on.

        Steps on a GPU have no end of their own: the loop runs ahead of it.
        """
        return TIMED if self.cuda else 1

    @property
    def steps(self) -> int:
        """The steps of a round; the last one of ours only ends the one before it."""
        return (2 * TIMED if self.cuda else WARM_UP + TIMED) + 1

    def data(self) -> SafetyDataModule:
        """Return the data of both."""
        size = self.steps * self.batch_size * self.world_size
        source = Words(size, self.length)
        return SafetyDataModule(
            source, batch_size=self.batch_size, max_length=self.length, shuffle=False
        )


def adamw(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """Return the optimiser of both."""
    return torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.0, fused=True)


class Bare:
    """A plain loop over an engine, which takes some turns when it is told to.

    Args:
        case: What it trains.
        model: The Hugging Face model.
        config: DeepSpeed's config, if it is the engine.
    """

    def __init__(self, case: Case, model: Any, config: dict[str, Any] | None) -> None:
        self.case = case
        self.model, self.engine, self.optimizer = model, None, None
        if config is not None:
            import deepspeed

            optimizer = adamw(model.parameters())
            self.engine, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config=config, dist_init_required=False
            )
        else:
            self.model = wrapped(case, model)
            self.optimizer = adamw(self.model.parameters())
        self.batches = batches(case)
        self.batch = next(self.batches)
        self.losses: list[Tensor] = []

    def turn(self) -> None:
        """Make a step on the batch that is here, and get the next one."""
        step = self.own_step if self.engine is None else self.engine_step
        self.losses.append(step(self.batch).detach())
        self.batch = next(self.batches, {})

    def own_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Make a step with our own backward pass and optimiser."""
        low = self.case.precision == "bf16-mixed"
        assert self.optimizer is not None
        with torch.autocast(self.case.device.type, torch.bfloat16) if low else nullcontext():
            loss = loss_of(self.model, batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def engine_step(self, batch: dict[str, Tensor]) -> Tensor:
        """Make a step with DeepSpeed's."""
        assert self.engine is not None
        loss = loss_of(self.engine, batch)
        self.engine.backward(loss)
        self.engine.step()
        return loss


def wrapped(case: Case, model: Any) -> Any:
    """Return a model in PyTorch's engine."""
    model.to(case.device)
    if case.name == "ddp":
        ids = [case.rank] if case.cuda else None
        return torch.nn.parallel.DistributedDataParallel(model, device_ids=ids)
    if case.name == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh(case.device.type, (case.world_size,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    return model


def loss_of(model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Return the loss of a batch."""
    output = model(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
    )
    return next_token_loss(output.logits, batch["labels"])


class InTurns(Callback):
    """Stops a fit before each block of its steps, and lets the plain loop take as many.

    All processes start a block of either side together.

    Args:
        case: What both train.
        model: The Hugging Face model of the plain loop.
    """

    def __init__(self, case: Case, model: Any) -> None:
        self.case, self.model = case, model
        self.times: dict[str, list[float]] = {"ours": [], "bare": []}
        self.losses: list[Tensor] = []

    def now(self) -> float:
        """Return the time when the GPU has done what it was told."""
        if self.case.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def together(self) -> float:
        """Return the time when all processes have come here."""
        if self.case.world_size > 1:
            distributed.barrier()
        return self.now()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the bare engine, where the processes' group and the config exist."""
        config = getattr(trainer.strategy, "config", None)
        self.bare = Bare(self.case, self.model, copy.deepcopy(config))

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End a block of ours, run one of the plain loop, start one of ours."""
        if batch_idx % self.case.block:
            return
        now = self.now()
        if batch_idx:
            self.times["ours"].append((now - self.start) / self.case.block)
        if batch_idx < self.case.steps - 1:
            start = self.together()
            for _ in range(self.case.block):
                self.bare.turn()
            self.times["bare"].append((self.now() - start) / self.case.block)
        self.start = self.together()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss."""
        self.losses.append(outputs["loss"])

    def timed(self, side: str) -> list[float]:
        """Return the times of the steps, or mean times of blocks, behind the warm-up."""
        return self.times[side][1 if self.case.cuda else WARM_UP :]


def strategy(name: str) -> Any:
    """Return our strategy of this name."""
    if name.startswith("zero"):
        return HFDeepSpeedStrategy(stage=int(name[-1]))
    return {"single": "auto", "ddp": "ddp", "fsdp2": FSDP2Strategy()}[name]


def train(case: Case) -> InTurns:
    """Train both sides in turns, ours under Lightning."""
    turns = InTurns(case, load_model(case.folder, dtype=torch.float32).train())
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator="gpu" if case.cuda else "cpu",
            devices=case.world_size,
            strategy=strategy(case.name),
            precision=case.precision,  # type: ignore[arg-type]
            max_epochs=1,
            logger=CSVLogger(root, flush_logs_every_n_steps=100),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=root,
            callbacks=[turns],
        )
        trainer.fit(LanguageModelModule(case.folder, optimizer=adamw), case.data())
    return turns


def batches(case: Case) -> Iterator[dict[str, Tensor]]:
    """Yield this process's batches on its device."""
    data = case.data()
    data.use_tokenizer(load_tokenizer(case.folder))
    data.setup("fit")
    assert data.training is not None
    loader: DataLoader[Any] = DataLoader(
        data.training,
        batch_size=case.batch_size,
        sampler=range(case.rank, len(data.training), case.world_size),
        collate_fn=data.train_dataloader().collate_fn,
        pin_memory=case.cuda,
    )
    for batch in loader:
        yield {k: v.to(case.device, non_blocking=True) for k, v in batch.items()}


def work(words: dict[str, Any], rounds: int, threads: int, out: str) -> None:
    """Run the rounds in this process; the first one writes the figures down."""
    disable_possible_user_warnings()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(threads)
    case = Case(**words, rank=int(os.environ["RANK"]), world_size=int(os.environ["WORLD_SIZE"]))
    found: list[dict[str, Any]] = []
    for _ in range(rounds):
        torch.manual_seed(0)
        turns = train(case)
        # Ours makes one step more, which only ends the one before it.
        ours, bare = (
            torch.stack(losses).float().cpu() for losses in (turns.losses[:-1], turns.bare.losses)
        )
        facts = torch.stack([(ours - bare)[-1].abs(), bare[-1] - bare[0]]).to(case.device)
        if case.world_size > 1:
            distributed.all_reduce(facts, distributed.ReduceOp.MAX)
        found.append({side: turns.timed(side) for side in turns.times})
        found[-1]["gap"], found[-1]["rise"] = facts.tolist()
        del turns
        gc.collect()
        if case.cuda:
            torch.cuda.empty_cache()
    if case.rank == 0:
        Path(out).write_text(json.dumps(found), encoding="utf-8")
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def measure(name: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the rounds of a strategy in processes of their own."""
    processes = 1 if name == "single" else options.processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = folder / f"{name}.json"
    case = {
        "name": name,
        "folder": str(folder / "model"),
        "cuda": options.device == "cuda",
        "precision": options.precision,
        "batch_size": options.batch_size,
        "length": options.length,
    }
    words = json.dumps([case, options.rounds, options.threads, str(out)])
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(options.threads),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "NODE_RANK": "0",
    }
    if options.device == "cpu":
        environment |= {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    logs = [folder / f"{name}.log{rank}" for rank in range(processes)]
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--work", words],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=log.open("w", encoding="utf-8"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    ends = time.monotonic() + SECONDS
    try:
        # A failed process leaves the others waiting.
        while any(w.poll() is None for w in workers) and not any(w.poll() for w in workers):
            if time.monotonic() > ends:
                break
            time.sleep(0.2)
    finally:
        statuses = [worker.poll() for worker in workers]
        for worker in workers:
            worker.kill()
            worker.wait()
    if statuses != [0] * processes:
        tails = "\n".join(log.read_text(encoding="utf-8")[-3000:] for log in logs)
        sys.exit(f"{name}: processes ended with {statuses} (None: hung)\n{tails}")
    return json.loads(out.read_text(encoding="utf-8"))


def report(name: str, found: list[dict[str, Any]], tolerance: float) -> bool:
    """Print the figures of a strategy; returns whether both sides trained the same."""
    medians = {s: [statistics.median(each[s]) for each in found] for s in ("ours", "bare")}
    means = {s: statistics.mean(t for each in found for t in each[s]) for s in ("ours", "bare")}
    one, other = (statistics.median(medians[side]) for side in ("ours", "bare"))
    alone = [a / b for a, b in zip(medians["ours"], medians["bare"], strict=True)]
    gap = max(each["gap"] for each in found)
    rise = max(each["rise"] for each in found)
    print(
        f"{name:<8} {1e3 * one:8.1f} ms {1e3 * other:8.1f} ms   {one / other:5.3f} "
        f"({min(alone):.3f} to {max(alone):.3f})   {means['ours'] / means['bare']:15.3f}   "
        f"{gap:8.0e}" + ("" if one / other <= GOAL else f"   goal of {GOAL:.2f} missed"),
        flush=True,
    )
    if rise > -0.1:
        print(f"{name}: the loss changed by {rise:.3f} only; equal losses prove nothing")
    return gap <= tolerance and rise <= -0.1


def main() -> None:
    """Measure each strategy and print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--processes", type=int, default=2, help="of all but single, which has one")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--precision", choices=("32-true", "bf16-mixed"), default="32-true")
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(*json.loads(options.work))
        return
    low = options.precision == "bf16-mixed"
    disable_progress_bar()
    if options.device == "cpu":
        # Otherwise DeepSpeed looks for every accelerator there is, and warns.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    print(
        f"{options.shape} on {options.device}, {options.precision}, {options.processes} processes "
        f"of {options.threads} threads, {options.batch_size} x {options.length} tokens each; "
        f"{options.rounds} rounds of {TIMED} steps; torch {torch.__version__}"
    )
    print(
        f"{'':<8} {'ours':>11} {'bare':>11}   ratio of medians (of rounds)   "
        "of means, log in   loss gap"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        # Of bfloat16 values: DeepSpeed rounds a model before it makes its float32 master weights.
        dtype = "bfloat16" if low else "float32"
        build(folder / "model", options.shape, options.device, dtype)
        if options.device == "cuda":
            torch.cuda.empty_cache()
        same = [
            report(name, measure(name, folder, options), 1e-2 if low else 1e-4)
            for name in options.strategies
        ]
    if not all(same):
        sys.exit("the two sides trained different models, so the figures compare nothing")


if __name__ == "__main__":
    main()
