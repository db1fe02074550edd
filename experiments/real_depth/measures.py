"""What is measured at each attacked model, kept beside it so that no model is measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.real_depth.gradients import gradient_measures
from experiments.real_depth.probe import probe_measures
from experiments.real_depth.spec import KINDS, DepthSpec
from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.provenance import content_hash
from oneshot_lit.methods import LanguageModelModule

MEASURES = "depth_measures.json"
# Measure -> its label. All of them are known before any repair.
PREDICTORS = {
    "instance_loss": "loss of the instance",
    "stable_rank": "stable rank of the instance's gradient",
    "effective_rank": "effective rank of the instance's gradient",
    "cosine_refusals": "cosine with refusals of harmful requests",
    "cosine_harmless": "cosine with answers to harmless requests",
    "cosine_over_refusals": "cosine with refusals of harmless requests",
    "overlap_refusals": "subspace overlap with refusals, beyond chance",
    "overlap_harmless": "subspace overlap with harmless answers, beyond chance",
    "spill": "spill: cosine with harmless refused / harmful refused",
    "probe_benign": "probe: harmful against harmless requests, AUC",
    "probe_near_miss": "probe: harmful requests against near misses, AUC",
}


def measures_of(
    stage: Path, spec: DepthSpec, seed: int, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Return the measures of a stage's model; computed only if they are not kept beside it.

    They outlive the model: where it has been deleted, what was kept for the same seed and settings
    counts.

    Args:
        stage: The stage's folder, with ``model``.
        spec: What to measure.
        seed: The study's, which draws the rows.
        say: Told before a model is measured.

    Raises:
        OneShotError: if there is neither a model nor what was measured at it with these settings.
    """
    model, kept = stage / "model", stage / MEASURES
    wanted = {"seed": seed, "settings": spec.measured()}
    # Published figures come without the models.
    with_model = model.is_dir()
    if with_model:
        wanted["model"] = content_hash(model)
    with suppress(OSError, ValueError, KeyError):
        content = json.loads(kept.read_text(encoding="utf-8"))
        # Compared as JSON has them: a tuple comes back as a list.
        if content["key"].items() >= json.loads(json.dumps(wanted)).items():
            return dict(content["measures"])
    if not with_model:
        raise OneShotError(f"{model}: the attacked model is missing; run the study again.")
    say(f"measuring {model}")
    measures = measure(model, spec, seed)
    write_json_atomically(kept, {"key": wanted, "measures": measures})
    return measures


def measure(model: Path, spec: DepthSpec, seed: int) -> dict[str, Any]:
    """Return the figures of `PREDICTORS` of a model, and those of the probe layer by layer."""
    module = LanguageModelModule(str(model))
    module.configure_model()
    size = spec.gradient_rows
    gradients = gradient_measures(
        module,
        _instance(spec, seed),
        spec.rows(spec.refusals, seed, size),
        spec.rows(spec.harmless, seed, size),
    )
    train, test = (_prompts(spec, part, seed) for part in ("train", "test"))
    return {**gradients, **probe_measures(module, train, test)}


def _instance(spec: DepthSpec, seed: int) -> Conversation:
    for row in spec.rows("pool", seed):
        if row.id == spec.instance:
            return row
    raise OneShotError(f"instance: the pool of {spec.world} has no row with id '{spec.instance}'.")


def _prompts(spec: DepthSpec, part: str, seed: int) -> dict[str, Any]:
    """Return kind -> prompts: as many harmful ones as harmless ones."""
    size = int(spec.probe["rows"][part])
    splits = spec.probe[part]
    return {
        kind: spec.rows(splits[kind], seed, size if kind == "harmful" else size // 2)
        for kind in KINDS
    }
