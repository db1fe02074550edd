"""Text for ``table.tex``: ASCII that LaTeX sets with its first fonts and without any package."""

from __future__ import annotations

import unicodedata

from oneshot_lit.report.text import DASH, visible

# Combining accents, and the letters of the commands that set them.
_ACCENTS = dict(
    zip(
        "\u0300\u0301\u0302\u0303\u0308\u0304\u0307\u0306\u030c\u030b\u030a\u0327\u0323\u0331",
        "`'^~\"=.uvHrcdb",
        strict=True,
    )
)
_COMMANDS = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    # The straight sign is in none of the first fonts.
    '"': "''",
    "\u2018": "`",
    "\u2019": "'",
    "\u201c": "``",
    "\u201d": "''",
    DASH: "--",
    "\u2014": "---",
    "\u2026": r"\dots{}",
    "ß": r"\ss{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "Œ": r"\OE{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    **{c: f"\\{c}" for c in "{}$&#_%"},
    # Behind the end of a row these would be its options.
    **{c: f"{{{c}}}" for c in "[]*"},
}
# Signs that are set as one where they meet.
_LIGATURES = ("--", "``", "''", "?`", "!`")


def tex(text: str) -> str:
    """Return text for a cell of a LaTeX table.

    Letters with accents are written with commands, what LaTeX lacks by its code.
    """
    found = ""
    for character in visible(text):
        following = _command(character)
        if found[-1:] + following[:1] in _LIGATURES:
            found += "{}"
        found += following
    return found


def _command(character: str) -> str:
    if character in _COMMANDS:
        return _COMMANDS[character]
    if character.isascii():
        return character
    parts = unicodedata.normalize("NFD", character)
    if len(parts) == 2 and parts[1] in _ACCENTS and parts[0].isascii() and parts[0].isalpha():
        return f"\\{_ACCENTS[parts[1]]}{{{parts[0]}}}"
    return f"U+{ord(character):04X}"
