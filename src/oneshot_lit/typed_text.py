"""Let text typed on the command line be text, also where YAML would read a mapping in it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader


def let_text_be_text() -> None:
    """Read a line such as ``Note: be kind`` or ``- milk`` as text, from now on.

    The parser reads every value as YAML before it knows its type, so a prompt with a colon would
    come as a mapping. Mappings and lists within a line are written ``{a: b}`` and ``[a, b]``;
    blocks of several lines, such as config files, are read as ever.
    """
    loader = get_loader("yaml")
    if not hasattr(loader, "__wrapped__"):
        set_loader("yaml", _text_first(loader), exceptions=(yaml.YAMLError,))


def _text_first(loader: Callable[[str], Any]) -> Callable[[str], Any]:
    @wraps(loader)
    def load(text: str) -> Any:
        value = loader(text)
        block = isinstance(value, (dict, list)) and text.lstrip()[:1] not in ("{", "[")
        return text if block and "\n" not in text else value

    return load
