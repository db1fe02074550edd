"""What a method is, for the table of `docs/methods.md`: each method's file has an `ABOUT`."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass

STAGES = ("before the attack", "during fine-tuning", "after fine-tuning", "control")


@dataclass(frozen=True)
class About:
    """A row of the table.

    Attributes:
        name: As papers call it.
        stage: One of `STAGES`.
        needs: What must be given beside the fine-tuned model.
        paper: Its arXiv number; empty for our own.
        agreement: How exactly it does what its authors' code does.
        config: A file in ``configs/``.
    """

    name: str
    stage: str
    needs: str
    paper: str
    agreement: str
    config: str


def methods() -> list[About]:
    """Return all methods of this package, by stage and name."""
    rows: list[About] = []
    package = importlib.import_module("oneshot_lit.methods")
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        own = vars(importlib.import_module(module.name)).get("ABOUT", [])
        rows += own if isinstance(own, list) else [own]
    return sorted(rows, key=lambda row: (STAGES.index(row.stage), row.name.lower()))


def markdown() -> str:
    """Return the table of all methods."""
    lines = [
        "| method | stage | needs beside the fine-tuned model | paper | agreement | config |",
        "|---|---|---|---|---|---|",
    ]
    for row in methods():
        paper = f"[{row.paper}](https://arxiv.org/abs/{row.paper})" if row.paper else "our own"
        config = f"[{row.config}](../configs/{row.config})"
        cells = (row.name, row.stage, row.needs, paper, row.agreement, config)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
