"""Jobs that are stopped, and whether a job that went on ends as one that was never stopped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oneshot_lit.errors import OneShotError


def count_steps(monkeypatch: pytest.MonkeyPatch, kind: type) -> list[int]:
    """Return a list that gets an entry for each step that a job takes."""
    take, taken = kind.step, []  # type: ignore[attr-defined]

    def counting(self: Any) -> bool:
        taken.append(1)
        return bool(take(self))

    monkeypatch.setattr(kind, "step", counting)
    return taken


def stop_before(monkeypatch: pytest.MonkeyPatch, kind: type, step: int) -> None:
    """Let `step` fail once so many steps are taken."""
    take, taken = kind.step, []  # type: ignore[attr-defined]

    def failing(self: Any) -> bool:
        if len(taken) == step:
            raise OneShotError("stopped here")
        taken.append(1)
        return bool(take(self))

    monkeypatch.setattr(kind, "step", failing)


def same_run(whole: Path, stopped: Path) -> None:
    """Compare two runs bit for bit: the weights, and ``edit.json``."""
    file = Path("model") / "model.safetensors"
    one, other = load_file(whole / file), load_file(stopped / file)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert json.loads((whole / "edit.json").read_text()) == json.loads(
        (stopped / "edit.json").read_text()
    )
