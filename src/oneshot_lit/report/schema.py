"""What a ``metrics.json`` must be for a report: other tools and hands may have changed it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.registry import LM_EVAL, is_rate, is_skill
from oneshot_lit.io.metrics_file import METRICS_FILE
from oneshot_lit.report.text import visible

_MEND = "mend it, or run the test again"
# Shipped judges that say yes or no; others may grade on any scale.
_JUDGES_OF_RATES = ("KeywordJudge", "ClassifierJudge")


def require_score(value: Any, key: str, origin: str, mend: str = _MEND) -> None:
    """Refuse what is no score of a metric: neither null nor a finite number on its scale.

    Args:
        value: The score.
        key: ``<metric>`` or ``<set>/<metric>``.
        origin: File, row and key, which the error begins with.
        mend: What to do about it.

    Raises:
        OneShotError: if it is none.
    """
    if value is None:
        return
    if not _is_number(value):
        raise OneShotError(f"{origin} must be a number or null; {mend}.")
    own = not key.startswith(f"{LM_EVAL}/") and (is_rate(key) or is_skill(key))
    if own and not 0 <= value <= 1:
        raise OneShotError(f"{origin} must be from 0 to 1, not {value}; {mend}.")


def require_readable(content: Mapping[str, Any], folder: Path) -> None:
    """Refuse a ``metrics.json`` that a report would stumble over or take for other numbers.

    Raises:
        OneShotError: naming the file and the key.
    """
    path = folder / METRICS_FILE
    for key, value in content["metrics"].items():
        require_score(value, key, f"{path}: metrics.{visible(key)}")
    for key in ("samples", "unscored", "empty_outputs", "cut_outputs"):
        _require_counts(content.get(key, {}), f"{path}: {key}")
    samples = content.get("samples", {})
    for key in ("empty_outputs", "cut_outputs"):
        for name, count in content.get(key, {}).items():
            _require_at_most(count, samples.get(name), f"{path}: {key}.{visible(name)}")
    for key, count in content.get("unscored", {}).items():
        tested = samples.get(key.rpartition("/")[0])
        _require_at_most(count, tested, f"{path}: unscored.{visible(key)}")
    decoding = content.get("decoding")
    if decoding is not None and not isinstance(decoding, dict):
        raise OneShotError(f"{path}: decoding must be an object; {_MEND}.")
    for name, facts in content["evaluations"].items():
        _require_evaluation(name, facts, content["metrics"], path)
    for key in _not_finite(content):
        raise OneShotError(f"{path}: {visible(key)} is NaN or infinite; {_MEND}.")


def _require_evaluation(
    name: str, facts: Mapping[str, Any], metrics: Mapping[str, Any], path: Path
) -> None:
    """Refuse an entry of ``evaluations`` that is not what a judge or lm-eval writes."""
    origin = f"{path}: evaluations.{visible(name)}"
    scores = facts.get("scores", [])
    of_lm_eval = name.startswith(f"{LM_EVAL}/")
    for key in scores:
        if key.startswith(f"{LM_EVAL}/") != of_lm_eval:
            raise OneShotError(f"{origin}.scores: {visible(key)} is not its own; {_MEND}.")
    if of_lm_eval:
        if not _is_count(facts.get("samples", 0)):
            raise OneShotError(f"{origin}.samples must be a whole number; {_MEND}.")
        errors = facts.get("stderr", {})
        if not isinstance(errors, dict) or not all(
            error is None or (_is_number(error) and error >= 0) for error in errors.values()
        ):
            raise OneShotError(f"{origin}.stderr must hold numbers or null; {_MEND}.")
        if not isinstance(facts.get("settings", {}), dict):
            raise OneShotError(f"{origin}.settings must be an object; {_MEND}.")
        return
    if str(facts.get("judge")).rpartition(".")[2] in _JUDGES_OF_RATES:
        for key in scores:
            if (value := metrics.get(key)) is not None and not 0 <= value <= 1:
                raise OneShotError(
                    f"{path}: metrics.{visible(key)} must be from 0 to 1, not {value}; judge again."
                )
    samples, unjudged = facts.get("samples", {}), facts.get("unjudged", {})
    _require_counts(samples, f"{origin}.samples")
    if not isinstance(unjudged, dict):
        raise OneShotError(f"{origin}.unjudged must be an object; {_MEND}.")
    for set_, reasons in unjudged.items():
        place = f"{origin}.unjudged.{visible(set_)}"
        _require_counts(reasons, place)
        _require_at_most(sum(reasons.values()), samples.get(set_), place)


def _require_counts(value: Any, origin: str) -> None:
    if not isinstance(value, dict) or not all(_is_count(count) for count in value.values()):
        raise OneShotError(f"{origin} must hold whole numbers from 0 by name; {_MEND}.")


def _require_at_most(count: int, samples: int | None, origin: str) -> None:
    if count > (samples or 0):
        raise OneShotError(f"{origin} counts {count} of {samples or 0} answers; {_MEND}.")


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """Yield the keys of numbers that JSON does not have, and Python reads all the same."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_finite(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for inner in value:
            yield from _not_finite(inner, key)
    elif isinstance(value, float) and not math.isfinite(value):
        yield key


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
