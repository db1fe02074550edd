"""Finds the mistake in a configuration that the parser has refused.

The parser's own message lists every reading that it has tried. Here each value is compared with the
type of its key instead, and the first one that does not fit is named with its file and line.
"""

from __future__ import annotations

import types
import typing
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Sequence
from dataclasses import is_dataclass
from importlib import import_module
from inspect import isclass
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser
from jsonargparse._required import iter_required_keys
from jsonargparse._typehints import ActionTypeHint, get_all_subclass_paths

from oneshot_lit.cli.given import Given, given_in
from oneshot_lit.cli.parsing import scheduler_class
from oneshot_lit.errors import did_you_mean

# Where the classes of earlier versions are now.
_MOVED = (
    "methods",
    "methods.select",
    "evaluation.judges",
    "evaluation.metrics",
    "callbacks",
    "data",
)

_takes_subclasses: Any = ActionTypeHint.is_subclass_typehint


class _MistakeError(Exception):
    """The line that says what is wrong."""


def find_mistake(parser: ArgumentParser, words: Sequence[str]) -> str | None:
    """Return the line for the first value that does not fit its key, or None if all seem to.

    Args:
        parser: The parser of the command, with all its keys.
        words: The command line.

    Raises:
        OneShotError: for a file named in a config that cannot be read.
        Exception: an error of a user's module while it is imported.
    """
    given = given_in(words)
    try:
        _check_keys(given, _keys_of(parser), ())
    except _MistakeError as mistake:
        return str(mistake)
    missing = [key for key in iter_required_keys(parser) if key not in given.keys]
    return (
        f"{', '.join(missing)} missing; give --KEY VALUE, or a --config FILE." if missing else None
    )


def _keys_of(parser: ArgumentParser) -> dict[str, Any]:
    """Return the type of each key of a parser; a group of keys is a nested dictionary."""
    keys: dict[str, Any] = {}
    for action in parser._actions:
        if action.dest.endswith(".help"):
            continue
        *groups, last = str(action.dest).split(".")
        level = keys
        for group in groups:
            below = level.get(group)
            level[group] = level = below if isinstance(below, dict) else {}
        if not isinstance(level.get(last), dict):
            level[last] = getattr(action, "_typehint", None) or action.type or Any
    return keys


def _check_keys(given: Given, known: dict[str, Any], at: tuple[str, ...]) -> None:
    for name, value in given.keys.items():
        if value.where is None:
            continue
        here = (*at, name)
        if name not in known:
            if name == "print_config":
                continue
            key, near = ".".join(here), did_you_mean(name, known)
            raise _MistakeError(f"{value.where}unknown key '{key}'{near}.")
        if isinstance(known[name], dict):
            _check_keys(value, known[name], here)
        else:
            _check(value, known[name], here)


def _check(given: Given, hint: Any, at: tuple[str, ...]) -> None:
    """Compare a value with the type of its key."""
    hints = list(_alternatives(hint))
    classes = [each for each in hints if _is_class(each)]
    if given.items:
        inner = [typing.get_args(each)[0] for each in hints if typing.get_origin(each) is list]
        for item in given.items if inner else ():
            _check(item, inner[0], at)
    elif not given.keys and _accepts(hint, given.text, classes):
        return
    elif given.text is not None and classes:
        _check_class(given, classes, at)
    elif not given.keys:
        _refuse_value(given, hints, at)
    elif (inner := [each for each in hints if typing.get_origin(each) is dict]) and not classes:
        for name, value in given.keys.items():
            _check(value, typing.get_args(inner[0])[1], (*at, name))
    elif len(classes) == 1 and isclass(classes[0]):
        _check_keys(given, _keys_of(_arguments(classes[0], 0)), at)


def _check_class(given: Given, hints: list[Any], at: tuple[str, ...]) -> None:
    key = ".".join(at)
    base = [kind for each in hints for kind in _bases(each)]
    target = _imported(given, base, key)
    kinds = tuple(kind for kind in base if isclass(kind))
    if isclass(target) and kinds and not issubclass(target, kinds):
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise _MistakeError(f"{given.where}{key}: {given.text} is no {wanted}.")
    skipped = [len(typing.get_args(each)[0]) for each in hints if _is_callable(each)]
    if not isclass(target):
        return
    parser = _arguments(target, skipped[0] if skipped else 0)
    _check_keys(given, _keys_of(parser), at)
    if missing := [name for name in iter_required_keys(parser) if name not in given.keys]:
        need = ", ".join(sorted(missing))
        raise _MistakeError(f"{given.where}{key}: {target.__name__} needs {need}.")


def _imported(given: Given, bases: Iterable[Any], key: str) -> Any:
    """Return the class of a name; errors of a user's module on import are raised unchanged."""
    path = str(given.text)
    module, _, name = path.rpartition(".")
    if not module:
        paths = [each for base in bases if isclass(base) for each in get_all_subclass_paths(base)]
        named = [each for each in dict.fromkeys(paths) if each.rpartition(".")[2] == name]
        if len(named) > 1:
            raise _MistakeError(
                f"{given.where}{key}: {name} may be {' or '.join(named)}; name one."
            )
        if not named:
            near = did_you_mean(name, [each.rpartition(".")[2] for each in paths])
            raise _MistakeError(f"{given.where}{key}: unknown class '{path}'{near}.")
        module, _, name = named[0].rpartition(".")
    try:
        holder: Any = import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        holder = None
    if hasattr(holder, name):
        return scheduler_class(getattr(holder, name))
    start = f"{given.where}{key}: "
    if module.startswith("oneshot_lit.") and (now := _moved(name)) is not None:
        raise _MistakeError(f"{start}{path} is now {now}.")
    if holder is None:
        raise _MistakeError(
            f"{start}cannot import {path}; check its spelling, and that its package is installed "
            "or in the working folder."
        )
    near = did_you_mean(path, [f"{module}.{each}" for each in dir(holder)])
    raise _MistakeError(f"{start}unknown class '{path}'{near}.")


def _moved(name: str) -> str | None:
    """Return the present address of a class of this package."""
    places = (f"oneshot_lit.{place}" for place in _MOVED)
    return next((f"{p}.{name}" for p in places if hasattr(import_module(p), name)), None)


def _accepts(hint: Any, text: str | None, classes: list[Any]) -> bool:
    """Whether a scalar fits a type, as the parser itself reads it."""
    if text is None or hint is Any:
        return True
    if classes:
        plain = [each for each in _alternatives(hint) if each not in classes]
        if not plain:
            return False
        hint = typing.Union[tuple(plain)]  # noqa: UP007
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=hint)
    try:
        parser.parse_args([f"--value={text}"])
    except (ArgumentError, TypeError, ValueError):
        return False
    return True


def _refuse_value(given: Given, hints: list[Any], at: tuple[str, ...]) -> None:
    names: list[str] = []
    for hint in hints:
        if typing.get_origin(hint) is typing.Literal:
            names += [str(each) for each in typing.get_args(hint)]
        elif hint is not type(None):
            names.append(getattr(hint, "__name__", str(hint)))
    start, text = f"{given.where}{'.'.join(at)}:", str(given.text)
    if text.endswith((".yaml", ".yml", ".json")) and not Path(text).exists():
        raise _MistakeError(f"{start} {text}: file not found.")
    raise _MistakeError(f"{start} needs {' or '.join(names)}, not {text}.")


def _arguments(target: Any, skipped: int) -> Any:
    """Return a parser of the arguments of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target, skip={skipped} if skipped else None, fail_untyped=False)
    return parser


def _alternatives(hint: Any) -> Iterable[Any]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        for each in typing.get_args(hint):
            yield from _alternatives(each)
    else:
        yield hint


def _is_callable(hint: Any) -> bool:
    return typing.get_origin(hint) is Callable


def _is_class(hint: Any) -> bool:
    return _is_callable(hint) or is_dataclass(hint) or _takes_subclasses(hint)


def _bases(hint: Any) -> Iterable[Any]:
    """Yield the classes that a type asks for: its own, or those that a function returns."""
    yield from _alternatives(typing.get_args(hint)[-1]) if _is_callable(hint) else (hint,)
