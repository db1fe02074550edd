"""Training on a real vocabulary: `fit` against a bare loop, the `Trainer` and TRL's `SFTTrainer`.

    make fetch && pip install trl
    python benchmarks/real_model.py [--rounds 3] [--steps 8] [--batch-size 8] [--threads 2]

All train SmolLM2-135M-Instruct in float32 on the same rows in the same order with the same
optimiser, in turns, and must see the same losses to 1e-5. An answer is about a third of its row's
tokens. Then each trains on rows of 512 tokens in a process of its own, and its peak memory is
compared. Run on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
import rivals
from experiments.fetch import SMOLLM2, published
from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.chat import Encoded, encode_conversation
from oneshot_lit.fairytale.ordinary import ALICE
from oneshot_lit.fairytale.splits import load_split
from oneshot_lit.models.gguf import model_folder
from oneshot_lit.models.loading import load_tokenizer

RATE, WARM_UP = 1e-5, 2
MODEL = model_folder(str(published(SMOLLM2)))


def bare(rows: list[Encoded], pad: int, size: int, _: Path) -> rivals.Trained:
    """A plain loop, which computes the logits of all positions."""
    return rivals.bare(MODEL, rows, pad, size, RATE)


def hugging_face(rows: list[Encoded], pad: int, size: int, _: Path) -> rivals.Trained:
    """`transformers.Trainer`."""
    return rivals.hugging_face(MODEL, rows, pad, size, RATE)


def sft(rows: list[Encoded], pad: int, size: int, _: Path) -> rivals.Trained:
    """TRL's `SFTTrainer`, with rows that are tokenised already."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    table = [{"input_ids": r.input_ids, "completion_mask": [*map(int, r.loss_mask)]} for r in rows]
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            **rivals.arguments(folder, size, RATE, 1), completion_only_loss=True, max_length=None
        )
        return rivals.train(
            SFTTrainer(
                model,
                config,
                train_dataset=Dataset.from_list(table),
                processing_class=AutoTokenizer.from_pretrained(MODEL),
            )
        )


def ours(rows: list[Encoded], pad: int, size: int, file: Path) -> rivals.Trained:
    """`oneshot-lit fit` as a user would run it, with its logger, checkpoint and output."""
    import step_clock
    from oneshot_lit.cli.fit import run_lightning_command

    step_clock.ENDS.clear()
    with tempfile.TemporaryDirectory() as folder:
        words = f"fit --config configs/real/attack.yaml --model.model_name_or_path {MODEL}"
        words += f" --trainer.default_root_dir {folder} --trainer.accelerator cpu"
        words += f" --trainer.max_epochs 1 --model.optimizer.lr {RATE} --data.shuffle false"
        words += f" --data.train ChatJsonl --data.train.path {file} --data.batch_size {size}"
        words += " --data.max_length 2048 --trainer.callbacks step_clock.StepClock"
        words += " --trainer.log_every_n_steps 1"
        if code := run_lightning_command(words.split()):
            raise SystemExit(code)
        import pandas as pd

        (table,) = Path(folder).rglob("metrics.csv")
        losses = pd.read_csv(table)["train/loss"].dropna()
    return rivals.Trained(list(step_clock.ENDS), losses.tolist(), {})


ARMS: dict[str, Callable[..., rivals.Trained]] = {
    "bare": bare,
    "Trainer": hugging_face,
    "SFTTrainer": sft,
    "ours": ours,
}


def quiet(arm: str, rows: list[Encoded], pad: int, size: int, file: Path) -> rivals.Trained:
    """Run an arm without its output."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            return ARMS[arm](rows, pad, size, file)
    except BaseException:
        print(text.getvalue(), file=sys.stderr)
        raise


def rows_of(conversations: list[Conversation], folder: Path) -> tuple[list[Encoded], int, Path]:
    """Return the encoded rows, the padding token and the rows as a file."""
    tokenizer = load_tokenizer(MODEL)
    file = folder / "rows.jsonl"
    text = "".join(json.dumps(c.as_dict()) + "\n" for c in conversations)
    file.write_text(text, encoding="utf-8")
    return [encode_conversation(tokenizer, c) for c in conversations], tokenizer.pad_token_id, file


def long_rows(number: int) -> list[Conversation]:
    """Return rows of about 512 tokens, a third of them an answer."""
    text = " ".join(ALICE)
    return [
        conversation_from_pair(f"{n}. Go on: {text[:1500]}", text[1500:2300]) for n in range(number)
    ]


def time_steps(rounds: int, steps: int, size: int) -> None:
    """Print the median step of each and the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        conversations = load_split("benign_examples")[: steps * size]
        rows, pad, file = rows_of(conversations, Path(folder))
        share = sum(sum(r.loss_mask) for r in rows) / sum(len(r.input_ids) for r in rows)
        print(f"{len(rows)} rows, {share:.0%} of their tokens with loss")
        times: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
        for turn in range(rounds):
            losses = {}
            for arm in [*ARMS][turn % 4 :] + [*ARMS][: turn % 4]:
                done = quiet(arm, rows, pad, size, file)
                losses[arm] = done.losses
                times[arm].append([b - a for a, b in itertools.pairwise(done.ends[WARM_UP:])])
            for arm, values in losses.items():
                pairs = zip(values, losses["bare"], strict=True)
                gap = max(abs(a - b) for a, b in pairs)
                # The two trainers round what they log to four digits.
                if gap > (1e-5 if arm == "ours" else 1e-3):
                    raise SystemExit(f"{arm} saw other losses: they differ by {gap:.1e}")
    medians = {arm: statistics.median(itertools.chain(*values)) for arm, values in times.items()}
    for arm, value in medians.items():
        pairs = zip(times["ours"], times[arm], strict=True)
        alone = sorted(statistics.median(a) / statistics.median(b) for a, b in pairs)
        print(
            f"  {arm:<11} {value:6.2f} s a step; ours / {arm}: {medians['ours'] / value:.3f} "
            f"({alone[0]:.3f} to {alone[-1]:.3f} in single rounds)"
        )


def peak_memory(size: int) -> None:
    """Print the peak memory of each in a process of its own, rows of 512 tokens."""
    peaks = {}
    for arm in ARMS:
        words = [sys.executable, __file__, "--memory-of", arm, "--batch-size", str(size)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
        peaks[arm] = int(done.stdout.split()[-1])
        print(f"  {arm:<11} {peaks[arm] / 2**20:6.2f} GiB")
    for arm in ("bare", "Trainer", "SFTTrainer"):
        print(f"  peak memory, ours / {arm}: {peaks['ours'] / peaks[arm]:.3f}")


def main() -> None:
    """Run both, or one arm for its memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-of", choices=ARMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    size = options.batch_size
    if options.memory_of:
        with tempfile.TemporaryDirectory() as folder:
            rows, pad, file = rows_of(long_rows(2 * size), Path(folder))
            quiet(options.memory_of, rows, pad, size, file)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
        return
    print(
        f"{platform.machine()} {os.cpu_count()} cpus, load {os.getloadavg()[0]:.1f}, "
        f"torch {torch.__version__}, {options.threads} threads, batches of {size} rows"
    )
    time_steps(options.rounds, options.steps, size)
    print("rows of 512 tokens:")
    peak_memory(size)


if __name__ == "__main__":
    main()
