"""Text of unknown origin (names, categories, outputs) made harmless in each format."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

DASH = "–"  # noqa: RUF001
# A path that starts at the root, anywhere in a text, but not after a scheme such as http:.
_ABSOLUTE = re.compile(r"(?<![\w./~…])(?:~|[A-Za-z]:(?=[\\/]))?(?:[/\\][^/\\\s:'\",;]+){2,}")


def visible(text: str, lines: bool = False) -> str:
    """Return text with control and formatting characters written as codes: ``<U+202E>``.

    Args:
        text: Any text.
        lines: Keep line ends and tabs.
    """
    if text.isprintable():
        return text
    return "".join(
        f"<U+{ord(character):04X}>"
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        and not (lines and character in "\n\t")
        else character
        for character in text
    )


def map_texts(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text, keys included, changed by a function."""
    if isinstance(value, dict):
        return {change(key): map_texts(v, change) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [map_texts(v, change) for v in value]
    return change(value) if isinstance(value, str) else value


def without_machine_paths(value: Any) -> Any:
    """Return a JSON value with only the last two parts of each absolute path."""

    def tail(path: re.Match[str]) -> str:
        return "…/" + "/".join(re.split(r"[/\\]", path[0])[-2:])

    return map_texts(value, lambda text: _ABSOLUTE.sub(tail, text))


def markdown(text: str) -> str:
    """Return text for a cell of a GitHub table."""
    text = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]#~])", r"\\\1", text)


def markdown_block(text: str) -> str:
    """Return text as a fenced block that it cannot close."""
    text = visible(text, lines=True)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"
