"""Text of unknown origin (names, categories, outputs) made harmless in each format."""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path
from typing import Any

DASH = "–"  # noqa: RUF001
# A path that begins at the root, anywhere in a text; what follows a scheme is none.
_ABSOLUTE = re.compile(r"(?<![\w./~…])(?:~|[A-Za-z]:(?=[\\/]))?(?:[/\\][^/\\\s:'\",;]+){2,}")
_LONGEST_LABEL = 40


def visible(text: str, lines: bool = False) -> str:
    """Return text without characters that steer a terminal, a browser or the direction of writing.

    Each is written as its code, so that two names stay two.

    Args:
        text: Any text.
        lines: Keep line ends and tabs; else they become spaces.
    """
    found = []
    for character in text:
        if character in "\n\t":
            found.append(character if lines else " ")
        elif unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            found.append(f"<U+{ord(character):04X}>")
        else:
            found.append(character)
    return "".join(found)


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


def csv_cell(text: str) -> str:
    """Return text that a spreadsheet takes for text, never for a formula."""
    text = visible(text)
    return f"'{text}" if text.lstrip()[:1] in ("=", "+", "-", "@") else text


def picture_label(text: str) -> str:
    """Return text that matplotlib draws as it is: no formula, no hidden legend entry."""
    text = visible(text)
    # A longer one leaves no room for the picture.
    text = text if len(text) <= _LONGEST_LABEL else f"{text[: _LONGEST_LABEL - 1]}…"
    text = text.replace("\\", "\\\\" if "$" in text else "\\").replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def without_machine_paths(value: Any) -> Any:
    """Return a JSON value whose absolute paths keep only their last two parts."""
    if isinstance(value, dict):
        return {key: without_machine_paths(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_machine_paths(v) for v in value]
    if isinstance(value, str):
        return visible(_ABSOLUTE.sub(lambda m: _tail(m[0]), value))
    return value


def _tail(path: str) -> str:
    return "…/" + "/".join(re.split(r"[/\\]", path)[-2:])


def relative_path(path: Path, start: Path) -> str:
    """Return a path seen from a folder, or its last two parts if it lies far away."""
    found = os.path.relpath(path.resolve(), start.resolve())
    if found.startswith(os.path.join("..", "..", "..", "..")):
        return visible(_tail(str(path.resolve())))
    return visible(Path(found).as_posix())
