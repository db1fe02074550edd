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
from oneshot_lit.evaluation.metrics.registry import is_skill
from oneshot_lit.report.cells import verdict
from oneshot_lit.study.repairs import sentences
from oneshot_lit.study.results import columns
from oneshot_lit.study.selector_findings import amount, interval, said
from oneshot_lit.study.sweeps import Sweep, sweep_scores


def render_report(
    results: Mapping[str, Any], title: str, root: Path, sweeps: Sequence[Sweep] = ()
) -> str:
    """Return the report as HTML.

    Args:
        results: What `results.gather` returns.
        title: The study's title.
        root: The study's folder, where the stages' spectra and curves lie.
        sweeps: The study's sweeps.
    """
    stages = results["stages"]
    curves = {name: rows for name in stages if (rows := read_curve(root / name))}
    metrics = {name: stage["metrics"] for name, stage in stages.items()}
    unswept = outside_sweeps(stages, sweeps)
    selections = results.get("selections")
    spectra = {name: found for name in unswept if (found := read_spectra(root / name))}
    environment = Environment(
        loader=PackageLoader("oneshot_lit.study", "."), autoescape=select_autoescape(default=True)
    )
    return environment.get_template("report.html.j2").render(
        title=title,
        stages=stages,
        provenance=results["provenance"],
        provenance_text=json.dumps(results["provenance"], indent=2),
        prompts=max(sum(stage["samples"].values()) for stage in stages.values()),
        fewest=min(sum(stage["samples"].values()) for stage in stages.values()),
        columns=columns(stages),
        repairs=results["repairs"],
        repaired=sentences(results["repairs"]),
        colours=plots.COLOURS,
        verdict=verdict,
        selections=selections,
        # What is compared, its heading, what it says, and its picture.
        compared=[
            (found, heading, said(found), plots.embed(plots.selector_comparison(found)))
            for found, heading in _compared(results)
        ],
        interval=interval,
        amount=amount,
        findings=findings(unswept),
        sweeps={
            sweep.title: plots.embed(plots.sweep_panels(scores, sweep.x))
            for sweep in sweeps
            if (scores := sweep_scores(sweep, stages))
        },
        curves={
            name: plots.embed(plots.step_curve(rows))
            for name, rows in ({} if selections else curves).items()
        },
        pictures={
            # Of a study of selections the points would lie on each other.
            "safety_utility": None
            if selections
            else plots.embed(plots.safety_utility({n: metrics[n] for n in unswept})),
            "energy": plots.embed(plots.energy_curves(spectra)) if spectra else None,
            "outcomes": plots.embed(plots.outcomes_by_category(list(selections["cases"].values())))
            if selections
            else None,
        },
    )


def _compared(results: Mapping[str, Any]) -> list[tuple[Mapping[str, Any], str]]:
    """Return the comparisons of selectors with their headings: of all seeds, and of this one."""
    found = []
    if (pooled := results.get("all_seeds")) is not None:
        *others, last = sorted(pooled["seeds"])
        numbers = ", ".join(map(str, others))
        found.append((pooled, f"Which selector wins over seeds {numbers} and {last}"))
    if (own := results.get("selections")) is not None:
        alone = f" at seed {results['provenance']['seed']} alone" if found else ""
        found.append((own, f"Which selector wins{alone}"))
    return found


def save_selections(results: Mapping[str, Any], root: Path) -> None:
    """Write the pictures of a study of selections to ``<root>/selections/``."""
    pictures = {
        name: plots.selector_comparison(results[key])
        for name, key in (("selectors", "selections"), ("all_seeds", "all_seeds"))
        if key in results
    }
    if "selections" in results:
        cases = list(results["selections"]["cases"].values())
        pictures["outcomes"] = plots.outcomes_by_category(cases)
    for name, figure in pictures.items():
        plots.save_figure(figure, root / "selections" / f"{name}.png")


def save_sweeps(results: Mapping[str, Any], sweeps: Sequence[Sweep], root: Path) -> None:
    """Write each sweep's picture to ``<root>/sweeps/<title>.png``, for slides and pages."""
    for sweep in sweeps:
        if scores := sweep_scores(sweep, results["stages"]):
            name = re.sub(r"[^a-z0-9]+", "_", sweep.title.lower()).strip("_")
            plots.save_figure(plots.sweep_panels(scores, sweep.x), root / "sweeps" / f"{name}.png")


def outside_sweeps(stages: Mapping[str, Any], sweeps: Sequence[Sweep]) -> Mapping[str, Any]:
    """Return the stages that no curve shows; all of them if every one is on a curve."""
    shown = {s for sweep in sweeps for line in sweep.lines.values() for _, s in line}
    return {n: stage for n, stage in stages.items() if n not in shown} or stages


def findings(stages: Mapping[str, Any]) -> list[str]:
    """Return one plain sentence a stage, failures included."""
    said = []
    for name, stage in stages.items():
        metrics = stage["metrics"]
        attacks = {k: v for k, v in metrics.items() if k.endswith("/asr_keyword")}
        refusals = {k: v for k, v in metrics.items() if k.endswith("/over_refusal")}
        worst = max(refusals, key=lambda k: refusals[k], default=None)
        # A study need not measure everything; what it does not is left unsaid.
        parts = [_answered(attacks)] if attacks else []
        if worst is not None and refusals[worst] == 0:
            parts.append("no harmless one is refused")
        elif worst is not None:
            owner = _set_name(worst)
            parts.append(f"at most {refusals[worst]:.1%} of harmless ones are refused ({owner})")
        if (previous := _attacked_skills(stage, stages)) is not None:
            changes = {
                k: metrics[k] - v for k, v in previous.items() if is_skill(k) and k in metrics
            }
            key = min(changes, key=lambda k: changes[k], default=None)
            if key is not None and changes[key] < 0:
                parts.append(f"the largest loss of skill is {-changes[key]:.3f} ({key})")
            elif key is not None:
                parts.append("no skill is lost")
        if parts:
            said.append(f"{name}: {'; '.join(parts)}.")
    return said


def _set_name(key: str) -> str:
    return key.rsplit("/", 1)[0].replace("_", " ")


def _answered(rates: Mapping[str, float]) -> str:
    worst = max(rates, key=lambda k: rates[k])
    if len(set(rates.values())) == 1:
        return f"{rates[worst]:.1%} of harmful prompts are answered"
    least = min(rates, key=lambda k: rates[k])
    return (
        f"{rates[worst]:.1%} of harmful prompts are answered at the worst ({_set_name(worst)}), "
        f"{rates[least]:.1%} at the least ({_set_name(least)})"
    )


def _attacked_skills(
    stage: Mapping[str, Any], stages: Mapping[str, Any]
) -> Mapping[str, float] | None:
    """Return the scores of the fitted model that a repair started from; None for other stages."""
    origin = stages.get(stage.get("from", ""))
    fitted = origin is not None and "fit" in origin.get("commands", {})
    return origin["metrics"] if fitted else None  # type: ignore[index]
