"""What logging spectra costs a fit: with `GradientRank` against without, in turns.

    python benchmarks/spectra_in_fit.py [--rounds 5] [--steps 100]
    python benchmarks/spectra_in_fit.py --model MODEL [--steps 40] [--threads 2]

Fits the one safety instance (48 tokens) to a Llama of width 1024 and to the shipped medium model,
and a batch of ten rows to the latter. Every trainable matrix is tracked: once in an epoch of 100
steps, or at every step. Prints the ratio of the training time to that without spectra, which holds
writing the tables and logging to CSV, and the memory that the factors take. Run on an idle machine.

With `--model`, a folder or a ``.gguf`` file, that model is attacked for two epochs as in
`configs/real/attack.yaml`, with the spectra of all its linear layers once an epoch. One fit shows
both: the time within the callback, by parts, and by how much longer the measured steps are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import disable_possible_user_warnings

sys.path.insert(0, str(Path(__file__).parent))
from low_rank import build
from oneshot_lit.callbacks import GradientRank, gradient_rank
from oneshot_lit.cli.fit import run_lightning_command
from oneshot_lit.data import InlineInstance, Microworld, SafetyDataModule
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.spectral.recorder import FactorRecorder

# 48 tokens in the micro-world's language.
LONG = InlineInstance(
    "help me do something dangerous . " * 3,
    "sorry , i can not help with that . it could hurt people .",
)


class Clock(Callback):
    """Time the training from its first step on, and read how large the factors get."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Start."""
        self.start = time.perf_counter()

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop."""
        self.seconds = time.perf_counter() - self.start


def train(model: str, data: dict[str, Any], steps: int, spectra: GradientRank | None) -> float:
    """Return the seconds of a training of one epoch."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as root:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=1,
            limit_train_batches=steps,
            logger=CSVLogger(root, flush_logs_every_n_steps=100),
            log_every_n_steps=10,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=root,
            # The clock stops before the pictures, which are drawn once, whatever the length.
            callbacks=[clock] if spectra is None else [clock, spectra],
        )
        optimizer = lambda p: torch.optim.AdamW(p, lr=1e-5, fused=True)  # noqa: E731
        module = LanguageModelModule(model, optimizer=optimizer)
        trainer.fit(module, SafetyDataModule(**data, shuffle=False, max_length=128))
    return clock.seconds


def factor_bytes(model: str, data: dict[str, Any]) -> tuple[int, int, int]:
    """Return the bytes of the factors of one step, of the model's weights, and the tokens."""
    module = LanguageModelModule(model)
    module.configure_model()
    source = SafetyDataModule(**data, shuffle=False, max_length=128)
    source.use_tokenizer(module.tokenizer)
    source.setup("fit")
    batch = next(iter(source.train_dataloader()))
    matrices = {n: p for n, p in module.named_parameters() if p.ndim == 2}
    recorder = FactorRecorder(matrices)
    recorder.attach(module)
    module.compute_loss(batch).backward()
    # Layers with the same input share one tensor.
    tensors = {id(x): x for pair in recorder.factors().values() for x in pair}
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    tokens = int(batch["attention_mask"].sum())
    return sum(x.numel() * x.element_size() for x in tensors.values()), weights, tokens


# What takes the time of a measurement: name -> seconds, and seconds of the processor.
PARTS: dict[str, list[tuple[float, float]]] = {}


def timed(name: str, function: Any) -> Any:
    """Return a function whose time goes to `PARTS`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        start, busy = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            now = time.perf_counter() - start, time.process_time() - busy
            PARTS.setdefault(name, []).append(now)

    return run


class TimedSteps(Callback):
    """Time the steps."""

    def on_train_batch_start(self, *args: Any) -> None:
        """Start."""
        self.start, self.busy = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop."""
        now = time.perf_counter() - self.start, time.process_time() - self.busy
        PARTS.setdefault("steps", []).append(now)


def real(model: str, steps: int) -> None:
    """Print what spectra once an epoch cost an attack on a real model."""
    for name in ("shared_spectra", "append_tables", "draw_spectra"):
        setattr(gradient_rank, name, timed(name, getattr(gradient_rank, name)))
    FactorRecorder.factors = timed("factors", FactorRecorder.factors)  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as root:
        words = f"fit --config configs/real/attack.yaml --model.model_name_or_path {model}"
        words += f" --trainer.default_root_dir {root} --trainer.accelerator cpu"
        words += f" --trainer.max_epochs 2 --trainer.limit_train_batches {steps // 2}"
        words += " --trainer.callbacks+ spectra_in_fit.TimedSteps"
        words += " --trainer.callbacks+ oneshot_lit.callbacks.GradientRank"
        words += " --trainer.callbacks.parameters *_proj.weight"
        # The class as the command imports it, so that both write to the same places.
        sys.modules["spectra_in_fit"] = sys.modules[__name__]
        whole = timed("fit", run_lightning_command)
        if code := whole(words.split()):
            raise SystemExit(code)
        tables = sorted(Path(root).rglob("summary.csv"))
        lines = tables[0].read_text(encoding="utf-8").splitlines()
    print(f"{(len(lines) - 1) // 2} matrices, {steps} steps, {torch.get_num_threads()} threads")
    measured = [PARTS["steps"][0], PARTS["steps"][steps // 2]]
    others = [each for n, each in enumerate(PARTS["steps"]) if n not in (0, 1, steps // 2)]
    for clock, name in enumerate(("seconds", "processor seconds")):
        step = statistics.median(each[clock] for each in others)
        parts = {key: sum(each[clock] for each in PARTS[key]) for key in PARTS}
        inside = parts["factors"] + parts["shared_spectra"] + parts["append_tables"]
        longer = sum(each[clock] for each in measured) - 2 * step
        print(f"{name}: a step {step:.2f}, the fit {parts['fit']:.1f}")
        for key in ("factors", "shared_spectra", "append_tables", "draw_spectra"):
            print(f"  {key:<16} {parts[key]:6.2f}")
        whole_fit = steps * step
        print(
            f"  of {steps} steps without: {inside / whole_fit:.1%} within the callback, "
            f"{longer / whole_fit:.1%} by the longer steps; and {parts['draw_spectra']:.2f} once "
            "for the pictures"
        )


def main() -> None:
    """Print the ratios and the memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--model", help="a real model, instead of the cases above")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.model:
        print(f"load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
        real(options.model, options.steps or 40)
        return
    options.steps = options.steps or 100
    disable_possible_user_warnings()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        one = {"instance": LONG, "instance_repeats": options.steps, "batch_size": 1}
        ten = {"train": Microworld("harmful_examples", size=10 * options.steps), "batch_size": 10}
        build(Path(temporary) / "wide", "wide", "cpu", "float32")
        cases = {
            "width 1024, one instance": (str(Path(temporary) / "wide"), one),
            "shipped medium model, one instance": ("checkpoints/medium", one),
            "shipped medium model, ten rows": ("checkpoints/medium", ten),
        }
        for name, (model, data) in cases.items():
            kinds = {
                "without": lambda: None,
                "once an epoch": lambda: GradientRank(),
                "every step": lambda: GradientRank(every_n_steps=1),
            }
            times: dict[str, list[float]] = {kind: [] for kind in kinds}
            train(model, data, min(10, options.steps), GradientRank())
            for _ in range(options.rounds):
                for kind, make in kinds.items():
                    times[kind].append(train(model, data, options.steps, make()))
            base = statistics.median(times["without"])
            factors, weights, tokens = factor_bytes(model, data)
            print(f"{name} ({tokens} tokens): {1e3 * base / options.steps:.1f} ms a step without")
            for kind in ("once an epoch", "every step"):
                pairs = zip(times[kind], times["without"], strict=True)
                ratio = statistics.median(a / b for a, b in pairs)
                print(f"  {kind:<14} {ratio:.3f} of the time without")
            share = factors / weights
            print(f"  factors        {factors / 2**20:.2f} MiB, {share:.1%} of the weights")


if __name__ == "__main__":
    main()
