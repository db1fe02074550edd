"""One study of selections at several seeds: the cases of all of them together."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.study.results import RESULTS, SHARED
from oneshot_lit.study.selections import Selections
from oneshot_lit.study.selector_summary import summarise
from oneshot_lit.study.selectors import read_rankings, scores_of


@dataclass(frozen=True)
class Seed:
    """A finished study of selections.

    Attributes:
        root: Its folder.
        results: Its ``results.json``.
    """

    root: Path
    results: Mapping[str, Any]

    @property
    def number(self) -> int:
        """Its seed."""
        return int(self.results["provenance"]["seed"])


def read_seeds(spec: Selections | None, seed: int, roots: Sequence[str]) -> list[Seed]:
    """Return the studies in other folders that may be held beside one of this spec and seed.

    Raises:
        OneShotError: naming the folder, if it holds no finished study of the same cases and
            selectors, or one of a seed that is there already.
    """
    if not roots:
        return []
    if spec is None:
        raise OneShotError("--beside: this study compares no selectors; leave it out.")
    found: list[Seed] = []
    for root in roots:
        each = Seed(Path(root).expanduser(), _read(Path(root).expanduser() / RESULTS, spec))
        if each.number in [seed, *(other.number for other in found)]:
            raise OneShotError(
                f"{each.root}: has seed {each.number}, whose cases would count twice; name a study "
                "of another seed."
            )
        found.append(each)
    return found


def _read(file: Path, spec: Selections) -> Mapping[str, Any]:
    if not file.is_file():
        raise OneShotError(f"{file}: no results; run the study there first.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        int(content["provenance"]["seed"])
        selections = content["selections"]
        cases, names = list(selections["cases"]), set(selections["selectors"])
        controls = set(selections["controls"])
    except (ValueError, KeyError, TypeError) as error:
        raise OneShotError(f"{file}: is no study of selections; name another folder.") from error
    for what, there, here in (
        ("cases", set(cases), set(spec.cases)),
        ("selectors", names, {spec.truth, *spec.selectors}),
        ("controls", controls, set(spec.controls)),
    ):
        if there != here:
            odd = sorted(there ^ here)[0]
            raise OneShotError(f"{file}: has other {what} than this study ('{odd}').")
    return content  # type: ignore[no-any-return]


def compare_seeds(spec: Selections, own: Seed, beside: Sequence[Seed]) -> dict[str, Any]:
    """Return what `compare_selectors` returns, over the cases of all seeds.

    Args:
        spec: What is compared.
        own: The study that has just been run.
        beside: What `read_seeds` returned.

    Raises:
        OneShotError: if two ranked other candidates, or were measured with other settings.
    """
    cases: dict[str, Any] = {}
    scores: dict[str, Any] = {}
    controls: dict[str, dict[str, Any]] = {text: {} for text in spec.controls}
    pool: list[str] | None = None
    for each in (own, *beside):
        _require_alike(own, each)
        rankings = read_rankings(spec, each.root)
        ranking = next(iter(next(iter(rankings.values())).values()))["ranking"]
        digests = [row["digest"] for row in ranking]
        pool = digests if pool is None else pool
        if digests != pool:
            raise OneShotError(f"{each.root}: ranks other candidates than {own.root}.")
        found, prefix = each.results["selections"], f"seed {each.number}"
        for case, named in scores_of(rankings).items():
            entry = found["cases"][case]
            title = entry["title"]
            cases[f"{prefix}/{case}"] = entry | {"title": f"{prefix}, {title}", "group": title}
            scores[f"{prefix}/{case}"] = named
            for text, rows in controls.items():
                rows[f"{prefix}/{case}"] = found["controls"][text]["cases"][case]
    seeds = [each.number for each in (own, *beside)]
    return {"seeds": seeds, **summarise(spec, cases, scores, controls)}


def _require_alike(own: Seed, other: Seed) -> None:
    for key in SHARED:
        there, here = (each.results["provenance"].get(key) for each in (other, own))
        if key != "seed" and there != here:
            raise OneShotError(
                f"{other.root}: '{key}' differs from that of {own.root}; they cannot be compared."
            )
