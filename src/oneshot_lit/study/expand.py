"""Repeated stages: ``each`` repeats a stage, and ``{name}`` is filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.study.checks import mapping

_MARK = re.compile(r"\{([A-Za-z_][\w-]*(?:\.[\w-]+)?)\}")


def expand(name: str, body: Any, place: str) -> list[tuple[str, Any]]:
    """Return a stage once for each combination of the values of its ``each``.

    ``each: {rows: [10, 100]}`` fills ``{rows}`` in the stage's name and values. A mapping gives
    every value its own fields: with ``each: {case: {small: {rate: 5.0e-4}}}``, ``{case}`` is
    small and ``{case.rate}`` is 5.0e-4.

    Raises:
        OneShotError: naming the place, if ``each`` is malformed or the name lacks a mark.
    """
    if not isinstance(body, Mapping) or "each" not in body:
        return [(name, body)]
    choices = []
    for key, values in mapping(body["each"], f"{place}.each").items():
        if not isinstance(values, (list, Mapping)) or not values or f"{{{key}}}" not in name:
            raise OneShotError(
                f"{place}.each: needs a list, or a mapping of values to their fields, and "
                f"'{{{key}}}' in the stage's name."
            )
        choice = []
        for value in values:
            own = values[value] if isinstance(values, Mapping) else {}
            fields = mapping(own, f"{place}.each.{key}.{value}")
            choice.append({key: value} | {f"{key}.{f}": content for f, content in fields.items()})
        choices.append(choice)
    rest = {k: v for k, v in body.items() if k != "each"}
    stages = []
    for combination in product(*choices):
        marks = {mark: value for part in combination for mark, value in part.items()}
        stages.append((str(fill(name, marks)), fill(rest, marks)))
    return stages


def fill(content: Any, marks: Mapping[str, Any], place: str | None = None) -> Any:
    """Return content with every ``{mark}`` filled in; a lone mark becomes its value, type included.

    Args:
        content: Mappings, lists and plain values.
        marks: Mark, without its braces -> value.
        place: Where it stands, to refuse marks that nothing fills; None leaves them as they are.

    Raises:
        OneShotError: naming the place and the mark.
    """
    if isinstance(content, Mapping):
        return {
            # A key stays text: "{r}" alone must not become a number there.
            _text(key, marks, place) if isinstance(key, str) else key: fill(
                value, marks, place and f"{place}.{key}"
            )
            for key, value in content.items()
        }
    if isinstance(content, list):
        return [fill(each, marks, place) for each in content]
    if not isinstance(content, str):
        return content
    if (match := _MARK.fullmatch(content)) and match[1] in marks:
        # A value may contain the marks of other names.
        return fill(marks[match[1]], {k: v for k, v in marks.items() if k != match[1]}, place)
    return _text(content, marks, place)


def _text(content: str, marks: Mapping[str, Any], place: str | None) -> str:
    def value(match: re.Match[str]) -> str:
        if place is not None and match[1] not in marks:
            raise OneShotError(
                f"{place}: '{match[0]}' is filled by nothing; it must be seed, root, or a name "
                "under 'each'."
            )
        return str(marks.get(match[1], match[0]))

    return _MARK.sub(value, content)
