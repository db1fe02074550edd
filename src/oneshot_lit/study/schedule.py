"""In which order a study's commands run, and which of them side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from oneshot_lit.io.runs import PRODUCTS, SELECTION_FILE
from oneshot_lit.study.inputs import input_paths, parsed
from oneshot_lit.study.spec import Study
from oneshot_lit.study.stages import Stage


def needs(study: Study) -> dict[str, dict[str, bool]]:
    """Return stage -> the earlier stages that its commands read, and whether their tests too.

    That is the stage of its model, and every stage below whose folder lies a path that its settings
    or its config files name, however it is spelled.
    """
    found: dict[str, dict[str, bool]] = {}
    for stage in study.stages:
        named = {_absolute(text) for text in _named(stage)}
        reads: dict[str, bool] = {}
        for earlier in found:
            folder = _absolute(str(study.root / earlier))
            below = [path for path in named if path == folder or path.startswith(folder + os.sep)]
            if below or stage.model == earlier:
                # What a selection or a fit writes is there before the stage's test.
                done = tuple(
                    os.path.join(folder, name) for name in (SELECTION_FILE, PRODUCTS["fit"])
                )
                reads[earlier] = not all(path.startswith(done) for path in below)
        found[stage.name] = reads
    return found


def _named(stage: Stage) -> set[str]:
    """Return every text among a stage's settings and in its config files."""
    found = {stage.model}
    for command in stage.commands().values():
        _collect(dict(command.set), found)
        for path in input_paths([word for file in command.config for word in ("--config", file)]):
            if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
                _collect(parsed(path.read_text(encoding="utf-8", errors="replace")), found)
    return found


def _collect(content: Any, found: set[str]) -> None:
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for each in content:
            _collect(each, found)
    elif isinstance(content, str):
        found.add(content)
        # The command line reads a text that holds YAML like the mapping itself.
        if content.lstrip()[:1] in ("{", "[") and not isinstance(inner := parsed(content), str):
            _collect(inner, found)


def _absolute(text: str) -> str:
    # No path holds a NUL, and no text that does names one.
    return os.path.abspath(os.path.expanduser(text.replace("\0", "")))


class Schedule:
    """The commands that are still to run.

    A stage's own commands run one after another, and behind those of the stages that it needs; a
    test of theirs may go on unless it writes what the stage reads.

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
            written = all(self._written(n, tests) for n, tests in self._needs[name].items())
            if name not in self._running and written:
                self._running.add(name)
                return stage, verbs[0]
        return None

    def _written(self, name: str, tests: bool) -> bool:
        return name not in self._waiting or (not tests and self._waiting[name][1] == ["test"])

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
