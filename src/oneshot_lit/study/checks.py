"""Checks of the values in a study file, each with an error that names the place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from oneshot_lit.errors import OneShotError, did_you_mean


def mapping(raw: Any, place: str, known: Sequence[str] | None = None) -> Mapping[str, Any]:
    """Return the mapping `raw`; refuse keys that are not in `known`, if that is given."""
    if not isinstance(raw, Mapping):
        raise OneShotError(f"{place}: must map {', '.join(known or ['keys to values'])}.")
    for key in raw:
        if known is not None and key not in known:
            raise OneShotError(
                f"{place}: unknown key '{key}'{did_you_mean(str(key), known)}; "
                f"the keys are {', '.join(known)}."
            )
    return raw


def number(raw: Any, place: str, kind: type[float], least: float, most: float) -> Any:
    """Return a number between two limits; YAML's true does not count as one."""
    if not isinstance(raw, (int, kind)) or isinstance(raw, bool) or not least <= raw <= most:
        what = "whole number" if kind is int else "number"
        raise OneShotError(f"{place}: needs a {what} from {least} to {most}, not '{raw}'.")
    return raw


def stage_name(raw: Any, stages: Sequence[str], place: str, what: str = "stage") -> str:
    """Return the name of an existing stage."""
    if raw not in stages:
        raise OneShotError(f"{place}: '{raw}' is no {what}{did_you_mean(str(raw), stages)}.")
    return str(raw)
