"""In which order a study's commands run, and which of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from oneshot_lit.study.spec import Stage, Study


def needs(study: Study) -> dict[str, set[str]]:
    """Return stage -> the earlier stages whose products its commands read.

    That is the stage of its model, and every stage whose folder one of its settings names.
    """
    found: dict[str, set[str]] = {}
    for stage in study.stages:
        words = [text for c in stage.commands().values() for text in _texts(dict(c.set))]
        found[stage.name] = {
            earlier
            for earlier in found
            if stage.model == earlier or any(_within(w, study.root / earlier) for w in words)
        }
    return found


def _texts(content: Any) -> list[str]:
    if isinstance(content, dict):
        return [text for value in content.values() for text in _texts(value)]
    if isinstance(content, list):
        return [text for value in content for text in _texts(value)]
    return [content] if isinstance(content, str) else []


def _within(text: str, folder: Path) -> bool:
    return text == str(folder) or text.startswith(f"{folder}/")


class Schedule:
    """The commands that are still to run.

    A stage's own commands run one after another, and behind all commands of the stages it needs
    but their tests: a test writes nothing that another stage reads.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._needs = needs(study)
        self._waiting: dict[str, tuple[Stage, list[str]]] = {
            stage.name: (stage, list(stage.commands())) for stage in study.stages
        }
        self._running: set[str] = set()

    def __bool__(self) -> bool:
        """Whether any command has not ended."""
        return bool(self._waiting)

    def take(self) -> tuple[Stage, str] | None:
        """Return the first command that can run now, in the study's order; None if none can."""
        for name, (stage, verbs) in self._waiting.items():
            if name not in self._running and all(self._written(n) for n in self._needs[name]):
                self._running.add(name)
                return stage, verbs[0]
        return None

    def _written(self, name: str) -> bool:
        return name not in self._waiting or self._waiting[name][1] == ["test"]

    def end(self, name: str) -> None:
        """Note that the running command of a stage has ended."""
        self._running.remove(name)
        _, verbs = self._waiting[name]
        verbs.pop(0)
        if not verbs:
            del self._waiting[name]


def total(stages: Sequence[Stage]) -> int:
    """Return how many commands the stages have."""
    return sum(len(stage.commands()) for stage in stages)
