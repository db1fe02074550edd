"""Gather what the stages wrote into one ``results.json``."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oneshot_lit.callbacks.realignment_curve import read_curve
from oneshot_lit.errors import OneShotError
from oneshot_lit.study.repairs import summarise
from oneshot_lit.study.runner import Runner

RESULTS = "results.json"
# Settings that all scores of a study have in common.
SHARED = ("seed", "dtype", "precision", "decoding", "phrase_list", "versions")


def gather(runner: Runner) -> dict[str, Any]:
    """Return ``{"stages": {name: {"metrics": ...}}, "repairs": [...], "provenance": ...}``.

    A study of selections has ``selections`` besides; stages that select are in there alone.

    Raises:
        OneShotError: if a stage's scores are missing or were made with other settings.
    """
    stages: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for stage in runner.study.stages:
        if stage.test is None:
            continue
        path = runner.folder(stage) / "metrics.json"
        if not path.is_file():
            raise OneShotError(f"{path}: the stage's scores are missing; run the study again.")
        scores = json.loads(path.read_text(encoding="utf-8"))
        stages[stage.name] = {
            "metrics": scores["metrics"],
            "samples": scores["samples"],
            "empty_outputs": scores["empty_outputs"],
            "model": scores["model_name_or_path"],
            "from": stage.model,
            "commands": {
                verb: " ".join(["oneshot-lit", *runner.arguments(stage, verb)])
                for verb in stage.commands()
            },
            "seconds": {
                verb: round(runner.seconds[f"{stage.name} {verb}"], 2)
                for verb in stage.commands()
                if f"{stage.name} {verb}" in runner.seconds
            },
        }
        if (kept := kept_step(runner.folder(stage))) is not None:
            stages[stage.name]["kept_step"] = kept
        for key in SHARED:
            if shared.setdefault(key, scores[key]) != scores[key]:
                raise OneShotError(
                    f"{path}: '{key}' differs from the other stages'; scores cannot be compared."
                )
    machine = {"system": platform.system(), "cpus": os.cpu_count(), "arch": platform.machine()}
    provenance = {
        "study": str(runner.study.file),
        **shared,
        "machine": machine,
        "jobs": runner.study.jobs,
        "threads": runner.threads,
    }
    repairs = summarise(runner.study.repairs, stages)
    found: dict[str, Any] = {"stages": stages, "repairs": repairs, "provenance": provenance}
    if runner.study.selections is not None:
        from oneshot_lit.study.selectors import compare_selectors

        found["selections"] = compare_selectors(runner.study.selections, runner.study.root, stages)
        found["selections"]["commands"] = [
            " ".join(["oneshot-lit", *runner.arguments(stage, "select")])
            for stage in runner.study.stages
            if stage.select is not None
        ]
    return found


def kept_step(folder: Path) -> float | None:
    """Return which realignment step the product holds, or None for other stages."""
    return next((row["step"] for row in read_curve(folder) if row["kept"]), None)


def columns(stages: Mapping[str, Any]) -> list[str]:
    """Return every metric key, in the order in which the stages name them."""
    return list(dict.fromkeys(key for stage in stages.values() for key in stage["metrics"]))
