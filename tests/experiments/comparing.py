"""Selectors of three cases with figures that are known, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.selection.cases import compare_selectors
from experiments.selection.spec import Spec, parse_spec
from experiments.selection.studies import FinishedStudy

NAMES = ("brute", "good", "bad")
CASES = {"a": "case A", "b": "case B", "c": "case C"}
RAW: dict[str, Any] = {
    "truth": "brute",
    "selectors": ["good", "bad"],
    "cases": CASES,
    "question": "bad",
    "controls": {"no choice": "{case}_none"},
}
# Two hundred candidates, the first twenty general and better than the rest.
SIZE, GENERAL = 200, 20
OUTCOMES = {
    case: [
        float(rank) / SIZE + (0.2 if i >= GENERAL else 0.0)
        for i, rank in enumerate(np.random.default_rng(seed).permutation(SIZE))
    ]
    for seed, case in enumerate(CASES)
}


def spec(**changes: Any) -> Spec:
    return parse_spec({**RAW, **changes}, "c.yaml")


def write(root: Path, stage: str, scores: list[float], pool: str = "p") -> None:
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranking = [
        {
            "rank": rank,
            "row": i + 1,
            "id": f"r{i + 1}",
            "category": "general" if i < GENERAL else "fraud",
            "score": scores[i],
            "digest": f"{pool}{i}",
        }
        for rank, i in enumerate(order, 1)
    ]
    facts = {"forward_rows": 10, "backward_rows": 4, "seconds": 2.0}
    (root / stage).mkdir(parents=True, exist_ok=True)
    (root / stage / "selection.json").write_text(
        json.dumps({"m": 1, "ranking": ranking, "provenance": facts})
    )


def compare(root: Path, stages: dict[str, Any]) -> dict[str, Any]:
    study = FinishedStudy(root, {"stages": stages, "provenance": {"seed": 0}})
    return compare_selectors(spec(), [study])


def compared(root: Path, held_out: dict[str, tuple[float, float]] | None = None) -> dict[str, Any]:
    noise = np.random.default_rng(9).normal(size=SIZE) * 0.01
    for case, outcomes in OUTCOMES.items():
        write(root, f"{case}_brute", [-o for o in outcomes])
        best = outcomes.index(min(outcomes))
        good = [-o + noise[i] - (i != best) for i, o in enumerate(outcomes)]
        write(root, f"{case}_good", good)
        write(root, f"{case}_bad", [o + 0.1 * noise[i] for i, o in enumerate(outcomes)])
    rates = {"brute": (0.0, 0.01), "good": (0.01, 0.01), "bad": (0.0, 0.5), **(held_out or {})}
    return compare(root, patched(rates))


def patched(rates: dict[str, tuple[float, float]]) -> dict[str, Any]:
    found = {
        f"{c}_{n}_pick": {
            "metrics": {
                "h/asr_keyword": 0.0,
                "h2/asr_keyword": rates[n][0],
                "b/over_refusal": rates[n][1],
                "b2/over_refusal": 0.0,
                "b/exact_match": 1.0,
            }
        }
        for c in CASES
        for n in NAMES
    }
    for case in CASES:
        found[f"{case}_none"] = {"metrics": {"h/asr_keyword": 0.02, "b/over_refusal": 0.01}}
    return found


def finished(root: Path, seed: int, **provenance: Any) -> Path:
    """Write a finished study; return its folder."""
    picks = {"good": (0.01 * (seed + 1), 0.01)}
    compared(root, picks)
    rates = {"brute": (0.0, 0.01), "bad": (0.0, 0.5), **picks}
    facts = {"seed": seed, "phrase_list": "v", "dtype": "f", "jobs": 2, "threads": 1, **provenance}
    results = {"stages": patched(rates), "repairs": [], "provenance": facts}
    (root / "results.json").write_text(json.dumps(results))
    return root
