"""The order of a study's commands, and which of them may run at the same time."""

from __future__ import annotations

import os
from pathlib import Path

from oneshot_lit.io.runs import PRODUCTS
from oneshot_lit.study.inputs import named_in
from oneshot_lit.study.spec import Study
from oneshot_lit.study.stages import Stage

# A stage's name and one of its verbs.
Key = tuple[str, str]


def needs(study: Study) -> dict[Key, set[Key]]:
    """Return command -> the commands that must end before it starts.

    Those are the earlier commands of its stage. If its arguments or config files name a path in the
    folder of an earlier stage, all commands of that stage are needed, too; if they name only its
    model, only the fit.
    """
    needed: dict[Key, set[Key]] = {}
    earlier: list[Stage] = []
    for stage in study.stages:
        before: set[Key] = set()
        for verb in stage.commands():
            texts = named_in(study.arguments(stage, verb)).texts
            for other in earlier:
                before |= {(other.name, each) for each in _verbs_needed(study, other, texts)}
            needed[stage.name, verb] = set(before)
            before.add((stage.name, verb))
        earlier.append(stage)
    return needed


def _verbs_needed(study: Study, stage: Stage, texts: set[str]) -> list[str]:
    folder = _absolute(str(study.folder(stage)))
    paths = [Path(_absolute(text)) for text in texts]
    below = [path for path in paths if path.is_relative_to(folder)]
    if not below:
        return []
    model = Path(folder, PRODUCTS["fit"])
    only_model = stage.makes_model and all(path.is_relative_to(model) for path in below)
    return ["fit"] if only_model else list(stage.commands())


def _absolute(text: str) -> str:
    # A path has no NUL, so a text with one names no path.
    return os.path.abspath(os.path.expanduser(text.replace("\0", "")))


class Schedule:
    """The commands that are still to run.

    Args:
        study: The study.
    """

    def __init__(self, study: Study) -> None:
        self._needs = needs(study)
        self._stages = {stage.name: stage for stage in study.stages}
        self._running: set[Key] = set()

    def __bool__(self) -> bool:
        """Whether any command has not ended."""
        return bool(self._needs)

    def __len__(self) -> int:
        """How many commands have not ended."""
        return len(self._needs)

    def take(self) -> tuple[Stage, str] | None:
        """Return the first command that can run now, in the study's order; None if none can."""
        for key, before in self._needs.items():
            if key not in self._running and not before & self._needs.keys():
                self._running.add(key)
                return self._stages[key[0]], key[1]
        return None

    def end(self, stage: Stage, verb: str) -> None:
        """Note that a command has ended."""
        del self._needs[stage.name, verb]
