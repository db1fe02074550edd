"""``results.json``, and the report of a study: that of its tested stages, and what it adds."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from oneshot_lit import plots
from oneshot_lit.callbacks.realignment_curve import read_curve
from oneshot_lit.report.content import Report, Section, build_report, table_rows
from oneshot_lit.report.runs import Run, read_run
from oneshot_lit.report.scores import all_scores
from oneshot_lit.study.controls import compare_controls, controls_section
from oneshot_lit.study.repairs import measure, repairs_section
from oneshot_lit.study.spec import Stage, Study
from oneshot_lit.study.sweeps import sweep_scores

RESULTS = "results.json"
# Settings that the scores of a study may have in common.
SHARED = ("seed", "dtype", "precision", "decoding", "phrase_list", "versions")

Seconds = Mapping[str, Mapping[str, float]]


def compare_stages(study: Study, seconds: Seconds) -> tuple[Report, dict[str, Any]]:
    """Return the report of a study's tested stages, and the content of ``results.json``.

    In the latter, ``stages`` has the scores of each tested stage, ``selections`` the commands of
    each stage that selects, ``repairs`` the figures of each repair, ``controls`` those of each
    method beside its control, ``provenance`` the settings in common.

    Args:
        study: A study that has run.
        seconds: Stage -> verb -> seconds of the command.

    Raises:
        OneShotError: if a stage's scores are missing.
    """
    tested = [stage for stage in study.stages if "test" in stage.commands]
    runs = [read_run(stage.name, study.folder(stage)) for stage in tested]
    first = runs[0].content
    shared = {
        key: first.get(key)
        for key in SHARED
        if all(run.content.get(key) == first.get(key) for run in runs)
    }
    # A stage that only tests a model stands for it.
    origins = {
        stage.name: other.name
        for stage in tested
        for other in reversed(tested)
        if stage is not other
        and (stage.makes_model or stage.model == other.name)
        and stage.model in (other.name, "" if other.makes_model else other.model)
    }
    # Stages may have prompts or settings of their own; the notes name them.
    report = build_report(
        runs, study.title, 0, allow_differences=True, steps=[(v, k) for k, v in origins.items()]
    )
    repairs = [measure(repair, report.scores) for repair in study.repairs]
    pairs = {stage.name: stage.control_of for stage in tested if stage.control_of}
    controls = compare_controls(pairs, report.scores, all_scores(runs))
    results = {
        "stages": {
            stage.name: _entry(stage, run, study, seconds)
            for stage, run in zip(tested, runs, strict=True)
        },
        "selections": {
            stage.name: _commands(stage, study, seconds)
            for stage in study.stages
            if stage not in tested
        },
        "repairs": repairs,
        "controls": table_rows(controls),
        "provenance": {
            "study": str(study.file),
            **shared,
            "machine": {
                "system": platform.system(),
                "cpus": os.cpu_count(),
                "arch": platform.machine(),
            },
            "jobs": study.jobs,
            "threads": study.threads,
        },
    }
    if repairs:
        report.sections.append(repairs_section(repairs))
    if len(controls):
        report.sections.append(controls_section(controls))
    for sweep in study.sweeps:
        if drawn := sweep_scores(sweep, report.scores, origins):
            about = "A loss of skill is relative to the model that the stage started from."
            figure = plots.sweep_panels(drawn, sweep.x)
            report.sections.append(Section(sweep.title, about, figure=figure))
    return report, results


def _entry(stage: Stage, run: Run, study: Study, seconds: Seconds) -> dict[str, Any]:
    entry = {key: run.content.get(key) for key in ("metrics", "samples", "empty_outputs")}
    entry |= {"model": run.content.get("model_name_or_path"), "from": stage.model}
    kept = next((row["step"] for row in read_curve(run.folder) if row["kept"]), None)
    return entry | _commands(stage, study, seconds) | ({} if kept is None else {"kept_step": kept})


def _commands(stage: Stage, study: Study, seconds: Seconds) -> dict[str, Any]:
    return {
        "commands": {
            verb: " ".join(["oneshot-lit", *study.arguments(stage, verb)])
            for verb in stage.commands
        },
        "seconds": {k: round(v, 2) for k, v in seconds.get(stage.name, {}).items()},
    }
