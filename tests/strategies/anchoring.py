"""Fits of the documentation's example that asks for the model's answers at the start."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from training import saving_trainer

from oneshot_lit.data import ChatJsonl, SafetyDataModule

PAGE = Path(__file__).parent.parent.parent / "docs" / "extending.md"


def documented(name: str) -> Any:
    """Return a class as the page has it."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.S)
    code = next(block for block in blocks if f"class {name}" in block)
    found: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), found)
    return found[name]


def anchor(
    name: str,
    root: str,
    folder: str,
    rows: str,
    kind: str = "AnchoredFineTuning",
    processes: int = 1,
    peft: dict[str, Any] | None = None,
    kill_at: int | None = None,
    max_steps: int = -1,
    ckpt_path: str | None = None,
) -> None:
    """Train two epochs of three steps each, saving after each step; write the product."""
    torch.manual_seed(0)
    module = documented(kind)(
        folder, peft=peft, strength=5.0, optimizer=lambda ps: torch.optim.SGD(ps, lr=0.1)
    )
    trainer = saving_trainer(name, root, processes, max_steps, kill_at)
    data = SafetyDataModule(ChatJsonl(rows), batch_size=4, share_batch=True, seed=3)
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
