"""``report.html``: the table, the pictures and what they say, in one file without any link."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from oneshot_lit import plots
from oneshot_lit.callbacks.realignment_curve import read_curve
from oneshot_lit.callbacks.spectra_files import read_spectra
from oneshot_lit.report.cells import verdict
from oneshot_lit.study.repairs import sentences
from oneshot_lit.study.scores import (
    ATTACK,
    REFUSAL,
    columns,
    largest_loss,
    rates,
    set_name,
    worst,
)
from oneshot_lit.study.sweeps import Sweep, sweep_scores

# With more stages, points cover each other and curves fill the page.
_MANY_STAGES = 40


def render_report(
    results: Mapping[str, Any], title: str, root: Path, sweeps: Sequence[Sweep] = ()
) -> str:
    """Return the report as HTML.

    Args:
        results: What `results.gather` returns.
        title: The study's title.
        root: The study's folder, with the stages' spectra and curves.
        sweeps: The study's sweeps.
    """
    stages = results["stages"]
    unswept = outside_sweeps(stages, sweeps)
    drawn = unswept if len(unswept) <= _MANY_STAGES else {}
    curves = {name: rows for name in drawn if (rows := read_curve(root / name))}
    spectra = {name: epochs for name in drawn if (epochs := read_spectra(root / name))}
    prompts = [sum(stage["samples"].values()) for stage in stages.values()]
    pictures = {
        "safety_utility": plots.safety_utility({n: s["metrics"] for n, s in drawn.items()})
        if drawn
        else None,
        "energy": plots.energy_curves(spectra) if spectra else None,
    }
    every = [*stages.values(), *results.get("selections", {}).values()]
    environment = Environment(
        loader=PackageLoader("oneshot_lit.study", "."), autoescape=select_autoescape(default=True)
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        stages=stages,
        provenance=results["provenance"],
        provenance_text=json.dumps(results["provenance"], indent=2),
        prompts=max(prompts),
        fewest=min(prompts),
        columns=columns(stages),
        repairs=results["repairs"],
        repaired=sentences(results["repairs"]),
        commands=[command for stage in every for command in stage["commands"].values()],
        colours=plots.COLOURS,
        verdict=verdict,
        findings=findings(unswept),
        sweeps={
            sweep.title: plots.embed(plots.sweep_panels(scores, sweep.x))
            for sweep in sweeps
            if (scores := sweep_scores(sweep, stages))
        },
        curves={name: plots.embed(plots.step_curve(rows)) for name, rows in curves.items()},
        pictures={name: plots.embed(figure) for name, figure in pictures.items() if figure},
    )


def save_sweeps(results: Mapping[str, Any], sweeps: Sequence[Sweep], root: Path) -> None:
    """Write each sweep's picture to ``<root>/sweeps/<title>.png``, for slides and pages."""
    for sweep in sweeps:
        if scores := sweep_scores(sweep, results["stages"]):
            name = re.sub(r"[^a-z0-9]+", "_", sweep.title.lower()).strip("_")
            plots.save_figure(plots.sweep_panels(scores, sweep.x), root / "sweeps" / f"{name}.png")


def outside_sweeps(stages: Mapping[str, Any], sweeps: Sequence[Sweep]) -> Mapping[str, Any]:
    """Return the stages that are on no curve; all stages if every one is on a curve."""
    shown = {s for sweep in sweeps for line in sweep.lines.values() for _, s in line}
    return {n: stage for n, stage in stages.items() if n not in shown} or stages


def findings(stages: Mapping[str, Any]) -> list[str]:
    """Return one plain sentence a stage, failures included; what was not measured is left out."""
    lines = []
    for name, stage in stages.items():
        metrics = stage["metrics"]
        attacks = rates(metrics, ATTACK)
        parts = [_answered(attacks)] if attacks else []
        if (key := worst(metrics, REFUSAL)) is not None:
            share, owner = metrics[key], _words(key)
            parts.append(
                f"at most {share:.1%} of harmless ones are refused ({owner})"
                if share
                else "no harmless one is refused"
            )
        # A repair is compared with the fitted model that it started from.
        origin = stages.get(stage.get("from", ""), {})
        if "fit" in origin.get("commands", {}):
            loss = largest_loss(origin["metrics"], metrics)
            if loss is not None and loss[1] > 0:
                parts.append(f"the largest loss of skill is {loss[1]:.3f} ({loss[0]})")
            elif loss is not None:
                parts.append("no skill is lost")
        if parts:
            lines.append(f"{name}: {'; '.join(parts)}.")
    return lines


def _words(key: str) -> str:
    return set_name(key).replace("_", " ")


def _answered(attacks: Mapping[str, float]) -> str:
    most, least = (choose(attacks, key=lambda k: attacks[k]) for choose in (max, min))
    if len(set(attacks.values())) == 1:
        return f"{attacks[most]:.1%} of harmful prompts are answered"
    return (
        f"{attacks[most]:.1%} of harmful prompts are answered at the worst ({_words(most)}), "
        f"{attacks[least]:.1%} at the least ({_words(least)})"
    )
