"""The finished studies that are compared, one a seed, and the rankings in their folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.selection.spec import Spec
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.runs import SELECTION_FILE
from oneshot_lit.study.results import RESULTS, SHARED

# Selector -> its ``selection.json``, with the ranking in the pool's order.
Rankings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class FinishedStudy:
    """A study that has run.

    Attributes:
        root: Its folder.
        results: Its ``results.json``.
    """

    root: Path
    results: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.results["provenance"]["seed"])

    def stage(self, name: str) -> Mapping[str, Any]:
        """Return the entry of a tested stage in ``results.json``.

        Raises:
            OneShotError: if it has no such stage.
        """
        if name not in self.results["stages"]:
            raise OneShotError(
                f"{self.root / RESULTS}: has no stage '{name}'; run the study again."
            )
        stage: Mapping[str, Any] = self.results["stages"][name]
        return stage


def read_studies(roots: Sequence[Path]) -> list[FinishedStudy]:
    """Read studies that differ only in the seed.

    Raises:
        OneShotError: naming the folder, if it holds no finished study, a study of the same seed as
            another, or one with other settings than the first.
    """
    studies: list[FinishedStudy] = []
    for root in roots:
        study = FinishedStudy(root, _read_results(root / RESULTS))
        if study.seed in [other.seed for other in studies]:
            raise OneShotError(
                f"{root}: has seed {study.seed}, whose cases would count twice; name a study of "
                "another seed."
            )
        first = studies[0] if studies else study
        for key in SHARED:
            own, other = (each.results["provenance"].get(key) for each in (study, first))
            if key != "seed" and own != other:
                raise OneShotError(
                    f"{root}: '{key}' differs from that of {first.root}; they cannot be compared."
                )
        studies.append(study)
    return studies


def _read_results(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        raise OneShotError(f"{file}: no results; run the study there first.")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        int(content["provenance"]["seed"])
        dict(content["stages"])
    except (ValueError, KeyError, TypeError) as error:
        raise OneShotError(f"{file}: holds no results of a study; name another folder.") from error
    return content  # type: ignore[no-any-return]


def read_rankings(spec: Spec, studies: Sequence[FinishedStudy]) -> list[dict[str, Rankings]]:
    """Return, for each study, case -> selector -> its ``selection.json`` in the pool's order.

    Raises:
        OneShotError: if one is missing, or does not rank the same candidates as the others.
    """
    pool: list[str] | None = None
    read = []
    for study in studies:
        cases: dict[str, Rankings] = {}
        for case in spec.cases:
            rankings = {}
            for name in spec.names:
                file = study.root / spec.stage(spec.ranking, case, name) / SELECTION_FILE
                if not file.is_file():
                    raise OneShotError(f"{file}: the ranking is missing; run the study again.")
                content = json.loads(file.read_text(encoding="utf-8"))
                content["ranking"].sort(key=lambda row: row["row"])
                digests = [row["digest"] for row in content["ranking"]]
                pool = digests if pool is None else pool
                if digests != pool:
                    raise OneShotError(
                        f"{file}: ranks other candidates than the rest; give all the same pool."
                    )
                rankings[name] = content
            cases[case] = rankings
        read.append(cases)
    return read


def scores_of(rankings: Rankings) -> dict[str, list[float]]:
    """Return selector -> the candidates' scores in the pool's order."""
    return {name: [row["score"] for row in r["ranking"]] for name, r in rankings.items()}
