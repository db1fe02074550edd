"""Gathers the output of the stages in one ``results.json``."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from oneshot_lit.callbacks.realignment_curve import read_curve
from oneshot_lit.errors import OneShotError
from oneshot_lit.study.repairs import summarise
from oneshot_lit.study.runner import Runner
from oneshot_lit.study.stages import Stage

RESULTS = "results.json"
# Settings that all scores of a study have in common.
SHARED = ("seed", "dtype", "precision", "decoding", "phrase_list", "versions")


def gather(runner: Runner) -> dict[str, Any]:
    """Return the results of the stages.

    ``stages`` has the scores of each tested stage, ``selections`` the commands of each stage that
    selects, ``repairs`` the figures of each repair, ``provenance`` the settings in common.

    Raises:
        OneShotError: if a stage's scores are missing or were made with other settings.
    """
    stages: dict[str, Any] = {}
    selections: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for stage in runner.study.stages:
        if stage.test is None:
            selections[stage.name] = _commands(runner, stage)
            continue
        folder = runner.study.folder(stage)
        path = folder / "metrics.json"
        if not path.is_file():
            raise OneShotError(f"{path}: the stage's scores are missing; run the study again.")
        scores = json.loads(path.read_text(encoding="utf-8"))
        stages[stage.name] = {
            "metrics": scores["metrics"],
            "samples": scores["samples"],
            "empty_outputs": scores["empty_outputs"],
            "model": scores["model_name_or_path"],
            "from": stage.model,
            **_commands(runner, stage),
        }
        if (step := kept_step(folder)) is not None:
            stages[stage.name]["kept_step"] = step
        for key in SHARED:
            if shared.setdefault(key, scores[key]) != scores[key]:
                raise OneShotError(
                    f"{path}: '{key}' differs from the other stages'; scores cannot be compared."
                )
    provenance = {
        "study": str(runner.study.file),
        **shared,
        "machine": {
            "system": platform.system(),
            "cpus": os.cpu_count(),
            "arch": platform.machine(),
        },
        "jobs": runner.study.jobs,
        "threads": runner.threads,
    }
    return {
        "stages": stages,
        "selections": selections,
        "repairs": summarise(runner.study.repairs, stages),
        "provenance": provenance,
    }


def _commands(runner: Runner, stage: Stage) -> dict[str, Any]:
    return {
        "commands": {
            verb: " ".join(["oneshot-lit", *runner.study.arguments(stage, verb)])
            for verb in stage.commands()
        },
        "seconds": {k: round(v, 2) for k, v in runner.seconds.get(stage.name, {}).items()},
    }


def kept_step(folder: Path) -> float | None:
    """Return the realignment step that the model was kept at, or None for other stages."""
    return next((row["step"] for row in read_curve(folder) if row["kept"]), None)
