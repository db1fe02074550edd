"""Kill a study at random moments until it ends, and compare its table with that of another run.

    python experiments/kill_study.py --config configs/study/real_quick.yaml \
        --like runs/real_quick/results.json --root runs/real_quick_killed [--kills 5] [--seed 0]

It gets SIGKILL, at moments within the seconds that the other run took. Exits with 1 if a score
differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def scores(results: Path) -> dict[str, Any]:
    """Return stage -> its scores."""
    content = json.loads(results.read_text(encoding="utf-8"))
    return {name: stage["metrics"] for name, stage in content["stages"].items()}


def total_seconds(results: Path) -> float:
    """Return how long all commands of a study took together."""
    content = json.loads(results.read_text(encoding="utf-8"))
    return float(sum(sum(stage["seconds"].values()) for stage in content["stages"].values()))


def run(command: list[str], seconds: float | None) -> bool:
    """Run a command, kill it after some seconds, and return whether it ended before that."""
    process = subprocess.Popen(command, start_new_session=True)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        # Memory of killed processes comes back a little later.
        time.sleep(5)
        return False
    if code:
        raise SystemExit(f"the study ended with {code}")
    return True


def main() -> int:
    """Run and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", required=True)
    parser.add_argument("--like", type=Path, required=True)
    parser.add_argument("--root", required=True)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    command = [sys.executable, "-m", "oneshot_lit", "study", "--config", options.config]
    command += ["--root", options.root]
    total, rng = total_seconds(options.like), random.Random(options.seed)
    moments = sorted(rng.uniform(0, total) for _ in range(options.kills))
    kills = 0
    for before, moment in zip([0.0, *moments], moments, strict=False):
        print(f"kill {kills + 1} after {moment - before:.0f} s", flush=True)
        if run(command, moment - before):
            break
        kills += 1
    run(command, None)
    own, other = scores(Path(options.root) / "results.json"), scores(options.like)
    differ = [
        f"{stage}: {metric}: {own.get(stage, {}).get(metric)} instead of {value}"
        for stage, metrics in other.items()
        for metric, value in metrics.items()
        if own.get(stage, {}).get(metric) != value
    ]
    print("\n".join(differ) or f"{kills} kills, and every score of {len(other)} stages is the same")
    return int(bool(differ) or own.keys() != other.keys())


if __name__ == "__main__":
    sys.exit(main())
