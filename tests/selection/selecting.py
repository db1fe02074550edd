"""Selections by the command line on a small model, for the tests of this folder."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from child_commands import start

QUIET = ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def bilevel_words(model: Path, root: Path, *words: Any) -> list[str]:
    # Of a small pool the weights move faster.
    options = ["--model.penalty.steps", "8", "--model.penalty.rate", "20"]
    return [
        *_on_broken("configs/select/bilevel.yaml", model, root, limit=12),
        *options,
        *map(str, words),
    ]


def brute_words(model: Path, root: Path, *words: Any, limit: int = 5) -> list[str]:
    options = ["select", "--config", "configs/select/brute_force.yaml", *QUIET]
    options += ["--model.model_name_or_path", str(model), "--model.optimizer.lr", "5e-4"]
    options += ["--data.train.limit", str(limit), "--data.train.shuffle_seed", "0"]
    sets = {
        name: {
            "kind": kind,
            "source": {
                "class_path": "oneshot_lit.data.Microworld",
                "init_args": {"split": f"{name}_dev", "size": 12},
            },
        }
        for name, kind in {"harmful": "harmful", "benign": "benign", "sql": "task"}.items()
    }
    options += ["--data.val_sets", json.dumps(sets), "--model.patch_steps", "4"]
    options += ["--trainer.default_root_dir", str(root)]
    return [*options, *map(str, words)]


def enumeration_words(model: Path, root: Path, *words: Any) -> list[str]:
    options = _on_broken("configs/select/enumeration.yaml", model, root)
    options += ["--model.optimizer.lr", "5e-4", "--model.optimizer.fused", "false"]
    return [*options, "--model.patch_steps", "2", *map(str, words)]


def rule_words(model: Path, root: Path, *words: Any) -> list[str]:
    options = _on_broken("experiments/selection/rule.yaml", model, root)
    return [*options, *map(str, words)]


def _on_broken(config: str, model: Path, root: Path, limit: int = 3) -> list[str]:
    options = ["select", "--config", config, *QUIET]
    options += ["--model.model_name_or_path", str(model), "--model.aligned", "checkpoints/small"]
    options += ["--data.train.limit", str(limit), "--data.train.shuffle_seed", "0"]
    task = {
        "class_path": "oneshot_lit.data.Microworld",
        "init_args": {"split": "sql_dev", "size": 4},
    }
    options += ["--model.harmful.size", "4", "--model.task", json.dumps(task)]
    return [*options, "--trainer.default_root_dir", str(root)]


def kill_after_rows(words: list[str], table: Path, rows: int, log: Path) -> None:
    """Kill the command with SIGKILL once its table has so many rows."""
    process = start(words, log)
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline and process.poll() is None:
            if table.exists() and len(table.read_text().splitlines()) > rows:
                break
            time.sleep(0.002)
        assert process.poll() is None, f"ended before it could be killed: {log.read_text()}"
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def read_rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def product(root: Path) -> dict[str, Any]:
    return json.loads((root / "selection.json").read_text())
