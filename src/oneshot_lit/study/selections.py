"""Selectors of a safety instance, compared with the ground truth over several cases.

A case is a broken model. Of each, a study has the ranking that every selector gives, that of brute
force, and the model that each one's pick patches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from oneshot_lit.errors import OneShotError, did_you_mean

if TYPE_CHECKING:
    from oneshot_lit.study.stages import Stage

_KEYS = ("truth", "selectors", "cases", "ranking", "pick", "goal", "question", "controls")


@dataclass(frozen=True)
class Selections:
    """What is compared.

    Attributes:
        truth: The brute force's name among the selectors.
        selectors: The others' names.
        cases: Name of a case -> what the reader knows it by.
        ranking: Stage of a selection, with ``{case}`` and ``{selector}``.
        pick: Stage of the model that the first of the ranking patches, the same.
        goal: How far the best selector's pick may be from the brute force's on held-out prompts.
        question: A selector of which is said, before the others, whether it beats chance.
        controls: What it is -> stage of a patched model, with ``{case}``, to hold beside the picks.
    """

    truth: str
    selectors: tuple[str, ...]
    cases: Mapping[str, str]
    ranking: str = "{case}_{selector}"
    pick: str = "{case}_{selector}_pick"
    goal: float = 0.02
    question: str | None = None
    controls: Mapping[str, str] = field(default_factory=dict)

    def stage(self, pattern: str, case: str, selector: str = "") -> str:
        """Return the name of a stage."""
        return pattern.replace("{case}", case).replace("{selector}", selector)

    def rankings(self) -> list[str]:
        """Return the stages that select."""
        names = (self.truth, *self.selectors)
        return [self.stage(self.ranking, c, s) for c in self.cases for s in names]

    def picks(self) -> list[str]:
        """Return the stages that patch with a pick."""
        names = (self.truth, *self.selectors)
        return [self.stage(self.pick, c, s) for c in self.cases for s in names]


def parse_selections(raw: Any, stages: Sequence[Stage], place: str) -> Selections | None:
    """Read the ``selections`` of a study file.

    Raises:
        OneShotError: naming the key, for a shape that is not so or a stage that is missing or of
            the other kind.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise OneShotError(f"{place}: must be a mapping of {', '.join(_KEYS)}.")
    for key in raw:
        if key not in _KEYS:
            raise OneShotError(f"{place}: unknown key '{key}'{did_you_mean(str(key), _KEYS)}.")
    selectors, cases = raw.get("selectors"), raw.get("cases")
    if not isinstance(selectors, list) or not selectors:
        raise OneShotError(f"{place}.selectors: must be a list of names.")
    if not isinstance(cases, Mapping) or not cases:
        raise OneShotError(f"{place}.cases: must map the name of a case to a description.")
    if not raw.get("truth"):
        raise OneShotError(f"{place}: needs 'truth', the brute force's name.")
    names = [str(name) for name in (raw["truth"], *selectors)]
    for name in names:
        if names.count(name) > 1:
            raise OneShotError(f"{place}.selectors: '{name}' is there twice; 'truth' is one, too.")
    for key, marks in (("ranking", ("case", "selector")), ("pick", ("case", "selector"))):
        pattern = str(raw.get(key, getattr(Selections, key)))
        if any(f"{{{mark}}}" not in pattern for mark in marks):
            raise OneShotError(f"{place}.{key}: needs '{{case}}' and '{{selector}}' in it.")
    question, controls = raw.get("question"), raw.get("controls") or {}
    if question is not None and question not in selectors:
        hint = did_you_mean(str(question), [str(name) for name in selectors])
        raise OneShotError(f"{place}.question: '{question}' is no selector{hint}.")
    if not isinstance(controls, Mapping):
        raise OneShotError(f"{place}.controls: must map a description to a stage with '{{case}}'.")
    goal = raw.get("goal", Selections.goal)
    if not isinstance(goal, (int, float)) or isinstance(goal, bool) or not 0 <= goal <= 1:
        raise OneShotError(f"{place}.goal: needs a share from 0 to 1, not '{goal}'.")
    found = Selections(
        str(raw["truth"]),
        tuple(str(name) for name in selectors),
        {str(case): str(case if text is None else text) for case, text in cases.items()},
        str(raw.get("ranking", Selections.ranking)),
        str(raw.get("pick", Selections.pick)),
        float(goal),
        question,
        {str(text): str(pattern) for text, pattern in controls.items()},
    )
    kinds = {stage.name: "pick" if stage.select is None else "ranking" for stage in stages}
    wanted = [("ranking", name, "ranking") for name in found.rankings()]
    wanted += [("pick", name, "pick") for name in found.picks()]
    for text, pattern in found.controls.items():
        if "{case}" not in pattern:
            raise OneShotError(f"{place}.controls.{text}: needs '{{case}}' in it.")
        wanted += [(f"controls.{text}", found.stage(pattern, c), "pick") for c in found.cases]
    for key, name, kind in wanted:
        if name not in kinds:
            hint = did_you_mean(name, list(kinds))
            raise OneShotError(f"{place}.{key}: '{name}' is no stage{hint}.")
        if kinds[name] != kind:
            what = "selects nothing" if kind == "ranking" else "is tested on nothing"
            raise OneShotError(f"{place}.{key}: stage '{name}' {what}.")
    return found
