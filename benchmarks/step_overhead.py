"""What the framework costs: a `fit` step against bare PyTorch and the Hugging Face Trainer.

    python benchmarks/step_overhead.py [--rounds 15] [--steps 30] [--batch-size 32]

All three train the same model (checkpoints/medium) on the same batches in the same order with the
same optimiser, in one process, in turns, and must end with the same weights. Then the start of
``oneshot-lit --help`` is timed against ``import lightning.pytorch.cli``. Run on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent))
import rivals
import step_clock
from oneshot_lit.cli.fit import run_lightning_command
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.microworld.splits import load_split
from oneshot_lit.models.loading import load_tokenizer

MODEL = "checkpoints/medium"
LEARNING_RATE = 5e-5
WARM_UP = 5


def durations(ends: list[float]) -> list[float]:
    """Return the durations of all steps after the warm-up."""
    return [b - a for a, b in zip(ends[WARM_UP:], ends[WARM_UP + 1 :], strict=False)]


def ours(file: Path, batch_size: int) -> rivals.Trained:
    """Train with `oneshot-lit fit` as a user would: its logger, checkpoints and product."""
    step_clock.ENDS.clear()
    with tempfile.TemporaryDirectory() as folder:
        words = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
        words += ["--trainer.default_root_dir", folder, "--trainer.accelerator", "cpu"]
        words += ["--model.model_name_or_path", MODEL, "--trainer.max_epochs", "1"]
        words += ["--model.optimizer.lr", str(LEARNING_RATE)]
        words += ["--data.train", "oneshot_lit.data.ChatJsonl", "--data.train.path", str(file)]
        words += ["--data.shuffle", "false", "--data.batch_size", str(batch_size)]
        words += ["--trainer.callbacks", "step_clock.StepClock"]
        code = run_lightning_command(words)
        if code:
            raise SystemExit(code)
        model = AutoModelForCausalLM.from_pretrained(f"{folder}/model", dtype=torch.float32)
    return rivals.Trained(list(step_clock.ENDS), [], model.state_dict())


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """Return the largest difference of any weight."""
    return max((one[k] - other[k]).abs().max().item() for k in one)


def time_steps(rounds: int, steps: int, batch_size: int) -> None:
    """Print the median step of each and the two ratios."""
    tokenizer = load_tokenizer(MODEL)
    conversations = load_split("harmful_examples")
    conversations = conversations * (1 + steps * batch_size // len(conversations))
    conversations = conversations[: steps * batch_size]
    rows = [encode_conversation(tokenizer, row) for row in conversations]
    times: dict[str, list[list[float]]] = {"bare": [], "hugging_face": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        text = "".join(json.dumps(c.as_dict()) + "\n" for c in conversations)
        file.write_text(text, encoding="utf-8")
        given = (rows, tokenizer.pad_token_id, batch_size, LEARNING_RATE)
        runs = {
            "bare": lambda: rivals.bare(MODEL, *given),
            "hugging_face": lambda: rivals.hugging_face(MODEL, *given, logging_steps=10),
            "ours": lambda: ours(file, batch_size),
        }
        for turn in range(rounds):
            weights = {}
            # The order turns, so that no one is always first on a warm or a tired machine.
            for name in [*runs][turn % 3 :] + [*runs][: turn % 3]:
                quiet = io.StringIO()
                with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
                    done = runs[name]()
                weights[name] = done.weights
                times[name].append(durations(done.ends))
            for name in ("hugging_face", "ours"):
                gap = largest_difference(weights["bare"], weights[name])
                if gap > 1e-5:
                    raise SystemExit(f"{name} trained another model: weights differ by {gap:.1e}")
    medians = {name: statistics.median(itertools.chain(*values)) for name, values in times.items()}
    print(f"median step, {rounds} rounds of {steps} steps of {batch_size} rows, {MODEL}:")
    for name, value in medians.items():
        print(f"  {name:<13} {1e3 * value:7.2f} ms")
    for name, title in (("bare", "bare PyTorch loop"), ("hugging_face", "Hugging Face Trainer")):
        # How far a shared machine's mood decides: the same ratio of each round alone.
        pairs = zip(times["ours"], times[name], strict=True)
        alone = sorted(statistics.median(a) / statistics.median(b) for a, b in pairs)
        middle = (
            f"half of the rounds {alone[len(alone) // 4]:.3f} to {alone[-1 - len(alone) // 4]:.3f}"
        )
        print(f"ours / {title:<21} {medians['ours'] / medians[name]:.3f}   ({middle})")


def time_start(rounds: int) -> None:
    """Print the median start of `--help` against importing LightningCLI."""
    commands = {
        "oneshot-lit --help": [str(Path(sys.executable).parent / "oneshot-lit"), "--help"],
        "import lightning.pytorch.cli": [sys.executable, "-c", "import lightning.pytorch.cli"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, value in medians.items():
        print(f"  {name:<29} {value:6.3f} s")
    first, second = medians.values()
    print(f"oneshot-lit --help / import lightning.pytorch.cli   {first / second:.3f}")


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(
        f"{platform.machine()} {os.cpu_count()} cpus, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads"
    )
    time_steps(options.rounds, options.steps, options.batch_size)
    time_start(options.rounds)


if __name__ == "__main__":
    main()
