"""Sharded checkpoints: folders that are whole or absent, and that say who can resume them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import name_full_disk, replace_folder, write_json_atomically

# What is written beside the engine's own files: who wrote them, and what each process adds.
FACTS, OWN = "checkpoint.json", "process-{rank:05d}.pt"
_OWN_KEY = "own_state"
_NAMES = {"file": "single or ddp", "fsdp2": "fsdp2", "deepspeed": "deepspeed"}


@contextmanager
def whole_folder(
    strategy: ParallelStrategy, path: Any, kind: dict[str, Any], checkpoint: dict[str, Any]
) -> Iterator[Path]:
    """Yield a folder, the same on all processes, that takes its place only when all have written.

    Args:
        strategy: The running strategy; all processes call this together.
        path: Where the checkpoint goes, on a file system that all processes share.
        kind: What `require_resumable` needs to know.
        checkpoint: What goes there; its `own_state` is taken out, and written for each process.
    """
    own = checkpoint.pop(_OWN_KEY, {})
    facts = {**kind, "run": checkpoint.get("run")}
    target = Path(strategy.broadcast(path))
    fresh = target.with_name(f".{target.name}.new")
    if strategy.is_global_zero:
        # A process that was killed while it saved has left this.
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        if "outputs" in checkpoint:
            # Of the model; only their owner may read them.
            fresh.chmod(0o700)
    strategy.barrier("checkpoint begun")
    try:
        yield fresh
        if own:
            torch.save(own, fresh / OWN.format(rank=strategy.global_rank))
    except BaseException as error:
        # The others may still write into it: the next save removes what is left.
        name_full_disk(error, target)
        raise
    strategy.barrier("checkpoint written")
    if strategy.is_global_zero:
        write_json_atomically(fresh / FACTS, facts)
        replace_folder(fresh, target)
    strategy.barrier("checkpoint in place")


def own_state(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a checkpoint in which a process puts what is its own.

    Under strategies whose processes are all alike, that of the first process serves all.
    """
    own: dict[str, Any] = checkpoint.setdefault(_OWN_KEY, {})
    return own


def add_own_state(strategy: ParallelStrategy, folder: Path, checkpoint: dict[str, Any]) -> None:
    """Put what this process kept for itself back into a checkpoint.

    Raises:
        OneShotError: if another number of processes kept it.
    """
    saved = len(list(folder.glob("process-*.pt")))
    if saved == 0:
        return
    if saved != strategy.world_size:
        raise OneShotError(
            f"{folder}: {saved} processes keep parts of the best weights in it, and this run has "
            f"{strategy.world_size}; resume with {saved} processes (trainer.devices)."
        )
    file = folder / OWN.format(rank=strategy.global_rank)
    checkpoint[_OWN_KEY] = torch.load(file, map_location="cpu", weights_only=True)


def facts_of(path: Path) -> dict[str, Any]:
    """Return what a checkpoint records of itself: ``kind`` (file, deepspeed, fsdp2 or unknown), ...

    Raises:
        OneShotError: if there is nothing.
    """
    if not path.exists():
        raise OneShotError(f"{path}: checkpoint not found; check the path.")
    if path.is_file():
        return {"kind": "file"}
    try:
        facts: dict[str, Any] = json.loads((path / FACTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {"kind": "unknown"}
    return facts


def _said(facts: dict[str, Any]) -> str:
    name = _NAMES.get(facts["kind"], "another program")
    name += f"_zero{facts['stage']}" if "stage" in facts else ""
    count = facts.get("world_size")
    return name if count is None else f"{name} on {count} process{'es' if count != 1 else ''}"


def require_resumable(path: Path, running: dict[str, Any], fitting: bool) -> None:
    """Refuse a checkpoint that the running strategy cannot take up.

    Args:
        path: A file or a folder.
        running: ``kind`` and, where only the same can resume it, ``stage`` and ``world_size``.
        fitting: Whether training goes on; otherwise only one file, or FSDP2's own, can be loaded.

    Raises:
        OneShotError: saying which strategy can, and how to go on without it.
    """
    facts = facts_of(path)
    advice = f"convert it: oneshot-lit export --checkpoint {path} --out FOLDER"
    if facts["kind"] == "unknown":
        raise OneShotError(f"{path}: a folder, but no checkpoint; check --ckpt_path.")
    if not fitting and facts["kind"] != "file" and running["kind"] != "fsdp2":
        raise OneShotError(
            f"{path}: a sharded checkpoint holds no whole model to evaluate; {advice}, and give "
            "the folder as --model.model_name_or_path."
        )
    known = {key: value for key, value in running.items() if key in facts or key == "kind"}
    if any(facts.get(key) != value for key, value in known.items()):
        raise OneShotError(
            f"{path}: was saved by {_said(facts)} and cannot be resumed by {_said(running)}; "
            f"resume it as it was saved, or {advice}, and start from the folder."
        )
