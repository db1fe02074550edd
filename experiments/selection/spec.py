"""What to compare: selectors of a safety instance, the ground truth, and the broken models.

A case is a broken model. For each case a study has the rankings of every selector and of brute
force, and the models patched with each selector's pick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from experiments.command import checked_keys, read_comparison
from oneshot_lit.errors import OneShotError, did_you_mean


@dataclass(frozen=True)
class Spec:
    """What to compare.

    Attributes:
        truth: The name of the brute force.
        selectors: The names of the selectors.
        cases: Name of a case -> its description.
        ranking: Stage that ranks, with ``{case}`` and ``{selector}``.
        pick: Stage patched with the first candidate of the ranking, in the same notation.
        goal: How far the best selector's pick may be from the brute force's on held-out prompts.
        question: The selector that the findings discuss first.
        controls: Description -> stage of a patched model, with ``{case}``, shown beside the picks.
    """

    truth: str
    selectors: tuple[str, ...]
    cases: Mapping[str, str]
    ranking: str = "{case}_{selector}"
    pick: str = "{case}_{selector}_pick"
    goal: float = 0.02
    question: str | None = None
    controls: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The ground truth and the selectors."""
        return (self.truth, *self.selectors)

    def stage(self, pattern: str, case: str, selector: str = "") -> str:
        """Return the name of a stage."""
        return pattern.replace("{case}", case).replace("{selector}", selector)


_KEYS = [each.name for each in fields(Spec)]


def load_spec(path: Path) -> Spec:
    """Read a YAML file with the fields of `Spec`.

    Raises:
        OneShotError: naming the file and the key, if the file is missing or malformed.
    """
    raw = read_comparison(path, _KEYS, "experiments/selection/comparison.yaml")
    return parse_spec(raw, str(path))


def parse_spec(raw: Any, place: str) -> Spec:
    """Return the spec that a mapping describes; `place` begins the error messages.

    Raises:
        OneShotError: if a key is unknown, missing or malformed.
    """
    raw = checked_keys(raw, _KEYS, place)
    selectors, cases = raw.get("selectors"), raw.get("cases")
    if not raw.get("truth"):
        raise OneShotError(f"{place}: needs 'truth', the name of the brute force.")
    if not isinstance(selectors, list) or not selectors:
        raise OneShotError(f"{place}: selectors: must be a list of names.")
    names = [str(name) for name in selectors]
    for name in names:
        if [str(raw["truth"]), *names].count(name) > 1:
            raise OneShotError(f"{place}: selectors: '{name}' is there twice; 'truth' counts, too.")
    if not isinstance(cases, Mapping) or not cases:
        raise OneShotError(f"{place}: cases: must map the name of a case to a description.")
    if (question := raw.get("question")) is not None and question not in names:
        hint = did_you_mean(str(question), names)
        raise OneShotError(f"{place}: question: '{question}' is no selector{hint}.")
    goal = raw.get("goal", Spec.goal)
    if not isinstance(goal, (int, float)) or isinstance(goal, bool) or not 0 <= goal <= 1:
        raise OneShotError(f"{place}: goal: needs a share from 0 to 1, not '{goal}'.")
    controls = raw.get("controls") or {}
    if not isinstance(controls, Mapping):
        raise OneShotError(f"{place}: controls: must map a description to a stage with '{{case}}'.")
    patterns = {key: str(raw.get(key, getattr(Spec, key))) for key in ("ranking", "pick")}
    for key, pattern in patterns.items():
        if "{case}" not in pattern or "{selector}" not in pattern:
            raise OneShotError(f"{place}: {key}: needs '{{case}}' and '{{selector}}' in it.")
    for text, pattern in controls.items():
        if "{case}" not in str(pattern):
            raise OneShotError(f"{place}: controls.{text}: needs '{{case}}' in it.")
    return Spec(
        truth=str(raw["truth"]),
        selectors=tuple(names),
        cases={str(case): str(case if text is None else text) for case, text in cases.items()},
        goal=float(goal),
        question=question,
        controls={str(text): str(pattern) for text, pattern in controls.items()},
        **patterns,
    )
