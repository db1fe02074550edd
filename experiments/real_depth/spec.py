"""What to compare: attacked models, their repairs, and the rows that they are measured with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.command import read_comparison
from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError, did_you_mean

WORLDS = ("fairytale", "microworld")
KINDS = ("harmful", "benign", "near_miss")


@dataclass(frozen=True)
class DepthSpec:
    """What to compare; `depth.yaml` has an example of each field.

    Attributes:
        bound: Largest over-refusal of a selective repair.
        cases: Stage of an attacked model -> ``title``, and ``aligned``, the stage before.
        repairs: Name of a repair -> its label; its stage is ``{case}_{repair}``.
        contrasts: Cause -> the two cases that differ in it.
        world: Where the rows of the measures come from: ``fairytale`` or ``microworld``.
        instance: Id of the instance in the world's ``pool``.
        refusals: Split of harmful requests that are refused.
        harmless: Split of harmless requests that are answered.
        gradient_rows: Rows in a batch whose gradient is compared with the instance's.
        probe: ``train`` and ``test``, kind -> split, and ``rows``, how many harmful ones of each.
    """

    bound: float
    cases: Mapping[str, Mapping[str, str]]
    repairs: Mapping[str, str]
    contrasts: Mapping[str, tuple[str, str]]
    world: str
    instance: str
    refusals: str
    harmless: str
    gradient_rows: int
    probe: Mapping[str, Mapping[str, Any]]

    def rows(self, split: str, seed: int, size: int | None = None) -> list[Conversation]:
        """Return rows of a split of the world, as drawn by a seed."""
        load = import_module(f"oneshot_lit.{self.world}.splits").load_split
        rows: list[Conversation] = load(split, seed)
        return rows[:size]

    def measured(self) -> dict[str, Any]:
        """Return the settings that the measures of a model depend on."""
        names = ("world", "instance", "refusals", "harmless", "gradient_rows", "probe")
        return {name: getattr(self, name) for name in names}


def load_spec(path: Path) -> DepthSpec:
    """Read a YAML file with the fields of `DepthSpec`; all of them are needed.

    Raises:
        OneShotError: naming the file and the key, if the file is missing or malformed.
    """
    known, example = [each.name for each in fields(DepthSpec)], "experiments/real_depth/depth.yaml"
    raw = read_comparison(path, known, example)
    for key in known:
        if key not in raw:
            raise OneShotError(f"{path}: needs '{key}'; see {example}.")
    spec = DepthSpec(**raw)
    for case, body in spec.cases.items():
        if not isinstance(body, Mapping) or {"title", "aligned"} - set(body):
            raise OneShotError(f"{path}: cases.{case}: needs 'title' and 'aligned'.")
    for cause, pair in spec.contrasts.items():
        for case in pair if len(pair) == 2 else ("",):
            if case not in spec.cases:
                hint = did_you_mean(case, list(spec.cases))
                raise OneShotError(f"{path}: contrasts.{cause}: '{case}' is no case{hint}.")
    if spec.world not in WORLDS:
        raise OneShotError(f"{path}: world: must be one of {', '.join(WORLDS)}.")
    if not 0 <= spec.bound <= 1:
        raise OneShotError(f"{path}: bound: needs a share from 0 to 1, not {spec.bound}.")
    return spec
