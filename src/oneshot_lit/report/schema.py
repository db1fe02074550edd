"""Checks the files of a run, because other tools or people may have changed them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.registry import LM_EVAL, is_rate, is_skill
from oneshot_lit.io.metrics_file import METRICS_FILE

# A shape is a type of value, in words, or an object of shapes; "*" means every key.
TEXT, OPTIONAL_TEXT = "text", "text or null"
COUNT, NUMBER = "a whole number from 0", "a number or null"
_COUNTS = {"*": COUNT}
_METRICS = {
    "metrics": {"*": NUMBER},
    "samples": _COUNTS,
    "unscored": _COUNTS,
    "empty_outputs": _COUNTS,
    "cut_outputs": _COUNTS,
    "decoding": {},
}
_OF_LM_EVAL = {"samples": COUNT, "stderr": {"*": NUMBER}, "settings": {}}
_OF_JUDGE = {"samples": _COUNTS, "unjudged": {"*": _COUNTS}}
_AGAIN = "correct it, or run the test again"


def require_shape(value: Any, shape: Any, origin: str, again: str = _AGAIN, key: str = "") -> None:
    """Refuse a JSON value that does not have the shape it should have.

    Args:
        value: The value; missing objects are empty, other missing values null.
        shape: One of the types above, or key -> shape.
        origin: File and row, with which the error starts.
        again: What to do about it.
        key: The value's key in it.

    Raises:
        OneShotError: naming the place and what must be there.
    """
    if not isinstance(shape, dict):
        if not _is(value, shape):
            raise OneShotError(f"{origin}: {key} must be {shape}; {again}.")
        return
    if not isinstance(value, dict):
        raise OneShotError(f"{origin}: {key} must be an object; {again}.")
    for name, inner in shape.items():
        for each in value if name == "*" else (name,):
            missing: Any = {} if isinstance(inner, dict) else None
            place = f"{key}.{each}" if key else each
            require_shape(value.get(each, missing), inner, origin, again, place)


def _is(value: Any, shape: str) -> bool:
    if value is None:
        return shape in (OPTIONAL_TEXT, NUMBER)
    if shape in (TEXT, OPTIONAL_TEXT):
        return isinstance(value, str)
    if shape == COUNT:
        return type(value) is int and value >= 0
    # NaN fails every comparison.
    return type(value) in (int, float) and abs(value) < 1e300


def require_on_scale(scores: Mapping[str, float | None], origin: str, again: str = _AGAIN) -> None:
    """Refuse scores of our own metrics that are not from 0 to 1."""
    for key, value in scores.items():
        own = not key.startswith(f"{LM_EVAL}/") and (is_rate(key) or is_skill(key))
        if own and value is not None and not 0 <= value <= 1:
            raise OneShotError(f"{origin}.{key} must be from 0 to 1, not {value}; {again}.")


def require_readable(content: Mapping[str, Any], folder: Path) -> None:
    """Refuse a ``metrics.json`` that is not what test, judge and lm-eval write.

    Raises:
        OneShotError: naming the file and the key.
    """
    path = folder / METRICS_FILE
    require_shape({**content, "decoding": content.get("decoding") or {}}, _METRICS, str(path))
    require_on_scale(content["metrics"], f"{path}: metrics")
    samples = content.get("samples", {})
    for key in ("unscored", "empty_outputs", "cut_outputs"):
        for name, count in content.get(key, {}).items():
            answers = samples.get(name.rpartition("/")[0] if key == "unscored" else name, 0)
            _require_at_most(count, answers, f"{path}: {key}.{name}")
    for name, facts in content["evaluations"].items():
        of_lm_eval = name.startswith(f"{LM_EVAL}/")
        place = f"evaluations.{name}"
        shape = _OF_LM_EVAL if of_lm_eval else _OF_JUDGE
        require_shape({"samples": 0 if of_lm_eval else {}} | facts, shape, str(path), key=place)
        for name_of_set, reasons in facts.get("unjudged", {}).items():
            answers = facts.get("samples", {}).get(name_of_set, 0)
            origin = f"{path}: {place}.unjudged.{name_of_set}"
            _require_at_most(sum(reasons.values()), answers, origin)
    try:
        json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise OneShotError(f"{path}: holds a NaN or infinite number; {_AGAIN}.") from error


def _require_at_most(count: int, answers: int, origin: str) -> None:
    if count > answers:
        raise OneShotError(f"{origin} counts {count} of {answers} answers; {_AGAIN}.")
