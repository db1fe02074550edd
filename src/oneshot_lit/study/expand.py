"""Repeated stages: ``each`` repeats a stage, and ``{name}`` is filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import product
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.study.checks import mapping


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
    each = body["each"]
    if not isinstance(each, Mapping) or not each:
        raise OneShotError(f"{place}.each: must map a name to values.")
    choices = []
    for key, values in each.items():
        if not isinstance(values, (list, Mapping)) or not values or f"{{{key}}}" not in name:
            raise OneShotError(
                f"{place}.each: needs a list, or a mapping of values to their fields, and "
                f"'{{{key}}}' in the stage's name."
            )
        fields = values if isinstance(values, Mapping) else {value: {} for value in values}
        choices.append(
            [
                {str(key): value}
                | {
                    f"{key}.{field}": content
                    for field, content in mapping(
                        own, f"{place}.each.{key}.{value}", what="fields to values"
                    ).items()
                }
                for value, own in fields.items()
            ]
        )
    rest = {k: v for k, v in body.items() if k != "each"}
    stages = []
    for combination in product(*choices):
        marks = {mark: value for part in combination for mark, value in part.items()}
        stages.append((str(fill(name, marks)), fill(rest, marks)))
    return stages


def fill(content: Any, marks: Mapping[str, Any]) -> Any:
    """Return content with every ``{mark}`` filled in; a lone mark becomes its value, type included.

    Args:
        content: Mappings, lists and plain values.
        marks: Mark, without its braces -> value.
    """
    if isinstance(content, Mapping):
        # A key stays text: "{r}" alone must not become a number there.
        return {
            _text(k, marks) if isinstance(k, str) else k: fill(v, marks) for k, v in content.items()
        }
    if isinstance(content, list):
        return [fill(each, marks) for each in content]
    if not isinstance(content, str):
        return content
    for mark, value in marks.items():
        if content == f"{{{mark}}}":
            # A value may contain the marks of other names.
            rest = {k: v for k, v in marks.items() if k != mark}
            return fill(value, rest) if rest else value
    return _text(content, marks)


def _text(content: str, marks: Mapping[str, Any]) -> str:
    for mark, value in marks.items():
        content = content.replace(f"{{{mark}}}", str(value))
    return content


_MARK = re.compile(r"\{[A-Za-z_]\w*(\.\w+)?\}")


def require_filled(content: Any, place: str) -> None:
    """Refuse a mark that has not been filled in.

    Raises:
        OneShotError: naming the place and the mark.
    """
    if isinstance(content, Mapping):
        for key, value in content.items():
            require_filled(key, place)
            require_filled(value, f"{place}.{key}")
    elif isinstance(content, list):
        for each in content:
            require_filled(each, place)
    elif isinstance(content, str) and (mark := _MARK.search(content)):
        raise OneShotError(
            f"{place}: '{mark[0]}' is filled by nothing; it must be seed, root, or a name under "
            "'each'."
        )
