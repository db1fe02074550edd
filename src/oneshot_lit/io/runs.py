"""What identifies a run, and a check that keeps it from overwriting another run's output."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.metrics_file import is_tested

RUN_FILE = "run.json"
# What other commands make from a run's scores and answers.
DERIVED = ("outcomes.jsonl", "judgments", "lm_eval.json")
# What a selection writes in place of a model.
SELECTION_FILE = "selection.json"
# What models say about training rows.
ANNOTATION_FILE = "annotations.safetensors"
PRODUCTS = {
    "fit": "model",
    "edit": "model",
    "select": SELECTION_FILE,
    "annotate": ANNOTATION_FILE,
    "test": "metrics.json",
    "predict": "predictions.jsonl",
}

# Keys that change how a run is shown, resumed or checkpointed, never what it produces.
_VOLATILE = (
    ("overwrite",),
    ("config",),
    ("checkpoint",),
    ("weights_only",),
    ("trainer", "default_root_dir"),
    ("trainer", "logger"),
    ("trainer", "enable_progress_bar"),
    ("trainer", "enable_model_summary"),
    ("trainer", "enable_checkpointing"),
    ("trainer", "log_every_n_steps"),
    ("trainer", "profiler"),
)


# Keys that may differ between a run and the run that resumes it.
_FREE_ON_RESUME = (
    ("export",),
    ("data", "init_args", "num_workers"),
    ("data", "init_args", "eval_batch_size"),
    ("model", "init_args", "decoding", "backend"),
    *(("trainer", key) for key in (
        "max_epochs", "max_steps", "max_time", "callbacks", "plugins", "accelerator", "devices",
        "num_nodes", "strategy", "benchmark", "detect_anomaly", "use_distributed_sampler",
    )),
)  # fmt: skip


def fingerprint(config: dict[str, Any], command: str = "fit") -> str:
    """Return a hash of everything in a resolved config that decides the output of a command."""
    # A resumed fit makes the same model; but a checkpoint's scores are not those of its base model.
    unseen = (*_VOLATILE, ("ckpt_path",)) if command == "fit" else _VOLATILE
    text = json.dumps(_without(config, unseen), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _without(config: dict[str, Any], keys: Sequence[Sequence[str]]) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(json.dumps(config, default=str))
    for *parents, last in keys:
        place = kept
        for key in parents:
            place = place.get(key) or {}
        place.pop(last, None)
    return kept


def resume_conflict(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """Return how a run differs from the one whose checkpoint it would resume, or None.

    Args:
        old: The resolved config of the run that saved the checkpoint.
        new: The resolved config of this run.
    """
    unseen = (*_VOLATILE, *_FREE_ON_RESUME, ("ckpt_path",))
    was, is_ = (dict(_leaves(_without(config, unseen))) for config in (old, new))
    for key in [*was, *(key for key in is_ if key not in was)]:
        if was.get(key) != is_.get(key):
            name = key.replace(".init_args", "").replace(".class_path", "")
            return f"{name} was {was.get(key)} and is now {is_.get(key)}"
    return None


def _leaves(place: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(place, dict) and place:
        for key, value in place.items():
            yield from _leaves(value, f"{name}.{key}" if name else str(key))
    else:
        yield name, place


def recorded_runs(root: Path) -> dict[str, Any]:
    """Return what a folder's ``run.json`` says about each output; {} if it cannot be read."""
    try:
        content = json.loads((root / RUN_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {command: run for command, run in content.items() if isinstance(run, dict)}


def require_own_folder(
    root: Path,
    command: str,
    own: str,
    overwrite: bool,
    config: dict[str, Any] | None = None,
    resumes: bool = False,
) -> None:
    """Refuse to overwrite what another run of the same command wrote.

    Args:
        root: Folder of the run.
        command: fit, test, predict or validate.
        own: The run's fingerprint.
        overwrite: Whether the user allows any output to be replaced.
        config: The resolved config of a fit.
        resumes: Whether the fit resumes a checkpoint. The output may then be that of the same run
            with fewer epochs or steps.

    Raises:
        OneShotError: naming the output and what to do about it.
    """
    if root.exists() and not root.is_dir():
        raise OneShotError(f"{root}: trainer.default_root_dir is a file; give a folder.")
    output = root / PRODUCTS.get(command, "")
    if command not in PRODUCTS or overwrite or not output.exists():
        return
    if command == "test" and not is_tested(root):
        return
    before = recorded_runs(root).get(command, {})
    if before.get("fingerprint") == own:
        return
    why, way = "", ""
    if isinstance(before.get("config"), dict) and config is not None:
        difference = resume_conflict(before["config"], config)
        if difference is None and resumes:
            return
        why = f" ({difference})" if difference is not None else " (shorter or longer)"
        way = ", go on with it (--ckpt_path last)" if difference is None else ""
    raise OneShotError(
        f"{output}: holds the output of another run{why}; choose another "
        f"--trainer.default_root_dir{way} or pass --overwrite true."
    )


def record_run(root: Path, command: str, run: dict[str, Any]) -> None:
    """Record in ``run.json`` which run made an output."""
    write_json_atomically(root / RUN_FILE, recorded_runs(root) | {command: run})
