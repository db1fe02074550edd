"""Depth studies with figures that are known, for the tests of this folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from experiments.real_depth.measures import PREDICTORS
from experiments.real_depth.spec import DepthSpec, load_spec

SHIPPED = Path("experiments/real_depth/depth.yaml")
CASES = {
    "flat": {"title": "flat", "aligned": "flat_policy"},
    "steep": {"title": "steep", "aligned": "steep_policy"},
}
# (harmful, benign, near misses refused) at each step; the first is the broken model.
CURVES = {
    "flat": [(0.0, 0.0, 0.0), (0.25, 0.0, 0.03125), (0.5, 0.25, 0.0), (1.0, 0.5, 0.75)],
    "steep": [(0.0, 0.0, 0.0), (0.5, 0.0, 0.0), (1.0, 0.03125, 0.0), (1.0, 0.0, 0.25)],
}
SEARCHES = {"flat": [(0.125, 0.0), (0.5, 0.3)], "steep": [(0.75, 0.0), (1.0, 0.05)]}
HELD_OUT = {"flat": (0.25, 0.0625), "steep": (1.0, 0.03125)}


def spec_file(path: Path, **changes: Any) -> Path:
    """Write the spec of two cases; rows are of the micro-world."""
    raw = yaml.safe_load(SHIPPED.read_text())
    raw |= {
        "cases": CASES,
        "repairs": {"one": "one refusal", "guarded": "guarded projection"},
        "contrasts": {"slope": ["flat", "steep"]},
        "world": "microworld",
        "gradient_rows": 2,
    }
    raw["probe"]["train"]["near_miss"] = "near_miss_dev"
    raw["probe"]["rows"] = {"train": 8, "test": 8}
    path.write_text(yaml.safe_dump(raw | changes, sort_keys=False))
    return path


def spec(path: Path, **changes: Any) -> DepthSpec:
    return load_spec(spec_file(path, **changes))


def write_csv(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def curve(folder: Path, steps: Sequence[tuple[float, float, float]], kept: int) -> None:
    rows = [
        {
            "step": step,
            "attempt": 1,
            "kept": int(step == kept),
            "score": 1 - refused + max(benign, near),
            "loss": "" if step == 0 else 0.5,
            "harmful/asr_keyword": 1 - refused,
            "benign/over_refusal": benign,
            "near_miss/over_refusal": near,
        }
        for step, (refused, benign, near) in enumerate(steps)
    ]
    write_csv(folder / "realignment.csv", rows)


def search(folder: Path, steps: Sequence[tuple[float, float]], kept: int) -> None:
    rows = [
        {
            "guard_lambda": 0.03,
            "alpha": 0.1 * 2**i,
            "attack": 1 - refused,
            "refusal": over,
            "score": 1 - refused + over,
            "kept": int(i == kept),
        }
        for i, (refused, over) in enumerate(steps)
    ]
    write_csv(folder / "step_search.csv", rows)


def entry(refused: float, over_refusal: float) -> dict[str, Any]:
    """Return a stage's entry; the worst harmless set is the near misses."""
    return {
        "metrics": {
            "harmful/asr_keyword": 1 - refused,
            "benign/over_refusal": 0.0,
            "near_miss/over_refusal": over_refusal,
        },
        "samples": {"harmful": 32, "benign": 32, "near_miss": 32},
    }


def finished(root: Path, seed: int, shift: float = 0.0) -> Path:
    """Write a finished study, its harmful refusal after the plain repair lowered by `shift`."""
    stages = {}
    for case in CASES:
        stages[f"{case}_policy"] = entry(1.0, 0.0)
        stages[case] = entry(0.0, 0.0)
        stages[f"{case}_one"] = entry(HELD_OUT[case][0] - shift, HELD_OUT[case][1])
        stages[f"{case}_guarded"] = entry(*HELD_OUT[case])
        steps = [(max(0.0, r - shift), b, n) for r, b, n in CURVES[case]]
        curve(root / f"{case}_one", steps, kept=2)
        search(root / f"{case}_guarded", SEARCHES[case], kept=1)
    facts = {"seed": seed, "phrase_list": "v", "dtype": "f", "jobs": 1, "threads": 1}
    (root / "results.json").write_text(json.dumps({"stages": stages, "provenance": facts}))
    return root


def measures(*seeds: int) -> dict[int, dict[str, dict[str, float]]]:
    """Return measures that are larger in the steep case, but the same in both for the probes."""
    return {
        seed: {
            case: {
                name: 0.5 if name.startswith("probe") else 0.1 * (case == "steep") + 0.01 * seed
                for name in PREDICTORS
            }
            for case in CASES
        }
        for seed in seeds
    }
