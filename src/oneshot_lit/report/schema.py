"""What a report needs of a ``metrics.json``, which other tools and hands may have changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.registry import LM_EVAL, is_rate, is_skill
from oneshot_lit.io.metrics_file import METRICS_FILE

_AGAIN = "correct it, or run the test again"


def require_score(value: Any, key: str, origin: str) -> None:
    """Refuse a score that is neither null nor a finite number on the metric's scale.

    Args:
        value: The score.
        key: ``<metric>`` or ``<set>/<metric>``.
        origin: File, row and key, with which the error starts.

    Raises:
        OneShotError: if it is not a score.
    """
    if value is None:
        return
    if not _is_number(value):
        raise OneShotError(f"{origin} must be a number or null; {_AGAIN}.")
    own = not key.startswith(f"{LM_EVAL}/") and (is_rate(key) or is_skill(key))
    if own and not 0 <= value <= 1:
        raise OneShotError(f"{origin} must be from 0 to 1, not {value}; {_AGAIN}.")


def require_readable(content: Mapping[str, Any], folder: Path) -> None:
    """Refuse a ``metrics.json`` that is not what test, judge and lm-eval write.

    Raises:
        OneShotError: naming the file and the key.
    """
    path = folder / METRICS_FILE
    for key, value in content["metrics"].items():
        require_score(value, key, f"{path}: metrics.{key}")
    samples = content.get("samples", {})
    _require_counts(samples, f"{path}: samples")
    for key in ("empty_outputs", "cut_outputs"):
        _require_counts(content.get(key, {}), f"{path}: {key}", samples)
    unscored = content.get("unscored", {})
    _require_counts(unscored, f"{path}: unscored")
    tested = {key: samples.get(key.rpartition("/")[0], 0) for key in unscored}
    _require_counts(unscored, f"{path}: unscored", tested)
    _require_object(content.get("decoding") or {}, f"{path}: decoding")
    for name, facts in content["evaluations"].items():
        origin = f"{path}: evaluations.{name}"
        if name.startswith(f"{LM_EVAL}/"):
            _require_counts({"samples": facts.get("samples", 0)}, origin)
            errors = facts.get("stderr", {})
            _require_object(errors, f"{origin}.stderr")
            for key, error in errors.items():
                require_score(error, f"{LM_EVAL}/{key}", f"{origin}.stderr.{key}")
            _require_object(facts.get("settings", {}), f"{origin}.settings")
            continue
        _require_counts(facts.get("samples", {}), f"{origin}.samples")
        unjudged = facts.get("unjudged", {})
        _require_object(unjudged, f"{origin}.unjudged")
        for name_of_set, reasons in unjudged.items():
            _require_counts(reasons, f"{origin}.unjudged.{name_of_set}")
        totals = {key: sum(reasons.values()) for key, reasons in unjudged.items()}
        _require_counts(totals, f"{origin}.unjudged", facts.get("samples", {}))
    try:
        json.dumps(content, allow_nan=False)
    except ValueError as error:
        raise OneShotError(f"{path}: holds a NaN or infinite number; {_AGAIN}.") from error


def _require_object(value: Any, origin: str) -> None:
    if not isinstance(value, dict):
        raise OneShotError(f"{origin} must be an object; {_AGAIN}.")


def _require_counts(value: Any, origin: str, most: Mapping[str, int] | None = None) -> None:
    _require_object(value, origin)
    for name, count in value.items():
        if type(count) is not int or count < 0:
            raise OneShotError(f"{origin}.{name} must be a whole number from 0; {_AGAIN}.")
        if most is not None and count > most.get(name, 0):
            raise OneShotError(
                f"{origin}.{name} counts {count} of {most.get(name, 0)} answers; {_AGAIN}."
            )


def _is_number(value: Any) -> bool:
    # NaN is smaller than nothing.
    return type(value) in (int, float) and abs(value) < 1e300
