"""Checks of the values in a study file, each with an error that names the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError, did_you_mean


def mapping(
    raw: Any, place: str, known: Sequence[str] | None = None, what: str = "keys to values"
) -> Mapping[str, Any]:
    """Return the mapping `raw`; refuse keys that are not in `known`, if that is given."""
    if not isinstance(raw, Mapping):
        raise OneShotError(f"{place}: must map {', '.join(known) if known else what}.")
    for key in raw:
        if known is not None and key not in known:
            raise OneShotError(
                f"{place}: unknown key '{key}'{did_you_mean(str(key), known)}; "
                f"the keys are {', '.join(known)}."
            )
    return raw


def whole_number(raw: Any, place: str, least: int, most: int) -> int:
    """Return a whole number between two limits; YAML's true does not count as one."""
    if not isinstance(raw, int) or isinstance(raw, bool) or not least <= raw <= most:
        raise OneShotError(f"{place}: needs a whole number from {least} to {most}, not '{raw}'.")
    return raw


def share(raw: Any, place: str) -> float:
    """Return a number from 0 to 1."""
    if not isinstance(raw, (int, float)) or isinstance(raw, bool) or not 0 <= raw <= 1:
        raise OneShotError(f"{place}: needs a share from 0 to 1, not '{raw}'.")
    return raw


def stage_name(raw: Any, stages: Sequence[str], place: str) -> str:
    """Return the name of an existing stage."""
    if raw not in stages:
        raise OneShotError(f"{place}: '{raw}' is no stage{did_you_mean(str(raw), stages)}.")
    return str(raw)
