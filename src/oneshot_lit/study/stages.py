"""A stage of a study file, and its commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Command:
    """Config files of a command, and keys to set on top of them."""

    config: tuple[str, ...]
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage: where its model comes from, how it is trained (if at all) and tested.

    A stage that selects instances ranks candidates for its model; it trains and tests none.

    Attributes:
        name: The stage's name and folder.
        model: A model folder, a hub name, or the name of an earlier stage.
        fit: How to train; None for a stage that only tests its model, or edits its weights.
        test: How to test; None for a stage that selects.
        select: How to select; None for other stages.
        edit: How to edit the weights instead of training; None for other stages.
    """

    name: str
    model: str
    fit: Command | None = None
    test: Command | None = None
    select: Command | None = None
    edit: Command | None = None

    @property
    def makes_model(self) -> bool:
        """Whether the stage makes its own model."""
        return self.fit is not None or self.edit is not None

    def commands(self) -> dict[str, Command]:
        """Return the stage's commands by verb, in their order."""
        every = {
            "select": self.select,
            "fit": self.fit,
            "edit": self.edit,
            "test": self.test,
        }
        return {verb: command for verb, command in every.items() if command is not None}
