"""How the parser reads text: what is typed stays text, and files are UTF-8 whatever the locale."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader
from jsonargparse.typing import Path as ParserPath

from oneshot_lit.cli.errors import Mistake, ParserMistakeError
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import read_text

# What stands on the command line: values, and the content of files that it names.
_typed: set[str] = set()
_files: set[str] = set()


def let_text_be_text(arguments: Sequence[str]) -> None:
    """Read a line such as ``Note: be kind`` or ``- milk`` as text, from now on.

    The parser reads every value as YAML before it knows its type, so a prompt with a colon would
    come as a mapping. Mappings and lists are typed as ``{a: b}`` and ``[a, b]``; any other typed
    value is text, also one of several lines. Files are read as ever.

    Args:
        arguments: The command line.
    """
    _typed.clear()
    _files.clear()
    for word in arguments:
        value = word.partition("=")[2] if word.startswith("--") and "=" in word else word
        _typed.add(value)
        _files.update(_content(value))
    loader = get_loader("yaml")
    if not hasattr(loader, "__wrapped__"):
        set_loader("yaml", _text_first(loader), exceptions=(yaml.YAMLError,))
    if not hasattr(ParserPath.read_text, "__wrapped__"):
        setattr(ParserPath, "read_text", _utf8_first(ParserPath.read_text))  # noqa: B010


def _utf8_first(read: Callable[[ParserPath], str]) -> Callable[[ParserPath], str]:
    """Return a method that reads a file of this machine as UTF-8, where the locale would decide."""

    @wraps(read)
    def utf8(path: ParserPath) -> str:
        if not os.path.isfile(path.absolute):
            return read(path)
        try:
            return read_text(path.absolute)
        except OneShotError as error:
            # The parser keeps only the text of what is raised while it tries a value's types.
            raise ParserMistakeError(Mistake(str(error))) from error

    return utf8


def _content(value: str) -> list[str]:
    """Return the content of a config file; the parser may hand it over without its ends."""
    path = Path(value)
    try:
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            text = read_text(path)
            return [text, text.strip()]
    except (OSError, ValueError, OneShotError):
        # A text too long for a name, or a file that another check names.
        pass
    return []


def _text_first(loader: Callable[[str], Any]) -> Callable[[str], Any]:
    @wraps(loader)
    def load(text: str) -> Any:
        value = loader(text)
        block = isinstance(value, (dict, list)) and text.lstrip()[:1] not in ("{", "[")
        if not block or text in _files:
            return value
        return text if "\n" not in text or text in _typed else value

    return load
