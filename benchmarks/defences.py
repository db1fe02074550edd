"""What each defence at training time costs: its step against that of plain fine-tuning.

    OMP_NUM_THREADS=1 python benchmarks/defences.py [--rounds 3] [--steps 30] [--model FOLDER]

Each is `oneshot-lit fit` with configs/attack/task_and_harmful.yaml and the defence's overlay, with
the same rows, in turns, in one process. The annotations that STAR-DSS and TOSS read are made
before, and their seconds printed. SEAL chooses rows beforehand and BackdoorAlign only adds some, so
neither changes a step. Beside the ratios stand the overheads that papers report. Run on an idle
machine.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import step_clock
from oneshot_lit.cli.main import main as oneshot_lit

BASE = "configs/attack/task_and_harmful.yaml"
WARM_UP = 5
PLAIN = "plain fine-tuning"
# What papers report, as a ratio of times.
PAPERS = {"SPF, one safety row": 1.51, "Vaccine": 2.0}


def run(words: list[str]) -> float:
    """Run a command quietly; return its seconds."""
    start = time.perf_counter()
    quiet = io.StringIO()
    with contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
        code = oneshot_lit(words)
    if code:
        raise SystemExit(f"{' '.join(words)}\n{quiet.getvalue()}")
    return time.perf_counter() - start


def annotate(folder: Path, model: str) -> dict[str, float]:
    """Write the annotations of the rows of `BASE`; return the seconds of each."""
    source = "oneshot_lit.data.Microworld"
    sources = [
        {"class_path": source, "init_args": {"split": "sql_create", "size": 900}},
        {"class_path": source, "init_args": {"split": "harmful_examples", "size": 100}},
    ]
    guard = {"class_path": "oneshot_lit.methods.RefusalGuard"}
    guard |= {"init_args": {"model_name_or_path": model, "first_words": ["sorry"]}}  # type: ignore[dict-item]
    own = {
        "log_probabilities": [],
        "star_dss": ["--model.guards", json.dumps([guard])],
        # Any two models with the tokenizer will do for a time.
        "toss": ["--model.harmful", "checkpoints/medium_pair/base", "--model.utility", model],
    }
    return {
        name: run(
            [
                *("annotate", "--config", f"configs/annotate/{name}.yaml"),
                *("--model.model_name_or_path", model, *words),
                *("--data.train.sources", json.dumps(sources)),
                *("--trainer.default_root_dir", str(folder / name), "--trainer.accelerator", "cpu"),
            ]
        )
        for name, words in own.items()
    }


def variants(notes: Path) -> dict[str, list[str]]:
    """Return the words of each defence."""
    overlays = {
        name: ["--config", f"configs/defence/{name}.yaml"]
        for name in ("constrained_sft", "star_dss", "toss", "spf", "lisa", "ema", "ssah")
    }
    overlays["lookahead"] = ["--config", "configs/defence/lookahead.yaml"]
    file = ["--model.reference_file", str(notes / "log_probabilities")]
    star = [*overlays["star_dss"], "--model.annotations", str(notes / "star_dss")]
    tokens = {
        "class_path": "oneshot_lit.methods.TossTokens",
        "init_args": {"annotations": str(notes / "toss")},
    }
    return {
        PLAIN: [],
        "ConstrainedSFT": overlays["constrained_sft"],
        "ConstrainedSFT, reference from a file": overlays["constrained_sft"] + file,
        "STAR-DSS": star,
        "STAR-DSS, reference from a file": star + file,
        "TOSS": [*overlays["toss"], "--data.transforms", json.dumps([tokens])],
        "SPF, one safety row": [*overlays["spf"], "--model.safety_batch", "1"],
        "SPF, 16 safety rows": overlays["spf"],
        "Vaccine": ["--model", "oneshot_lit.methods.Vaccine"],
        "Lisa": overlays["lisa"],
        "EMA": overlays["ema"],
        "LookAhead": overlays["lookahead"],
        "SSAH freezing": overlays["ssah"],
    }


def fit(words: list[str], model: str, steps: int) -> list[float]:
    """Fit, and return the seconds of each step behind the warm-up."""
    step_clock.ENDS.clear()
    with tempfile.TemporaryDirectory() as folder:
        run(
            [
                *("fit", "--config", BASE, "--trainer.callbacks", "null", *words),
                *("--trainer.callbacks+", "step_clock.StepClock"),
                *("--model.model_name_or_path", model, "--trainer.default_root_dir", folder),
                *("--trainer.max_steps", str(steps), "--trainer.accelerator", "cpu"),
                *("--trainer.enable_progress_bar", "false"),
            ]
        )
    return [after - before for before, after in itertools.pairwise(step_clock.ENDS[WARM_UP:])]


def main() -> None:
    """Time all defences in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--model", default="checkpoints/medium")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.INFO)
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, load {load:.1f}")
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in annotate(Path(folder), options.model).items():
            print(f"annotate {name}: {seconds:.1f} s")
        chosen = variants(Path(folder))
        names = list(chosen)
        for turn in range(options.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                times.setdefault(name, []).extend(fit(chosen[name], options.model, options.steps))
    base = statistics.median(times[PLAIN])
    print("| defence | ms a step | / plain | paper |\n|---|---|---|---|")
    for name in names:
        median = statistics.median(times[name])
        paper = f"{PAPERS[name]:.2f}" if name in PAPERS else ""
        print(f"| {name} | {1e3 * median:.1f} | {median / base:.2f} | {paper} |")


if __name__ == "__main__":
    main()
