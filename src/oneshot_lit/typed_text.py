"""Let text typed on the command line be text, also where YAML would read a mapping in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

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


def _content(value: str) -> list[str]:
    """Return the content of a config file; the parser may hand it over without its ends."""
    path = Path(value)
    try:
        if path.suffix in (".yaml", ".yml", ".json") and path.is_file():
            text = path.read_text(encoding="utf-8")
            return [text, text.strip()]
    except (OSError, ValueError):
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
