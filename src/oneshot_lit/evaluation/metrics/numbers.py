"""The final number of a worked answer, as GSM8K writes it: ``... #### 1,234``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from oneshot_lit.evaluation.metrics.base import TextRate, known

MARK = "####"
_DIGITS = r"[0-9][0-9.,]*|\.[0-9][0-9.,]*"
# The sign may come before or after the currency; a hyphen after a word or a digit, as in "5-6", is
# not a sign.
_NUMBER = (
    r"(?P<sign>(?<![\w)])[-+\u2212])?[$\u20ac\u00a3]?"
    rf"(?P<inner>(?<=[$\u20ac\u00a3])[-+\u2212])?(?P<digits>{_DIGITS})"
)


def marked_number(text: str) -> Decimal | None:
    """Return the number after the last ``####``; None if there is none.

    Commas, a currency sign and full stops at the end are passed over; what follows the number, such
    as a unit, does not matter.
    """
    _, mark, after = text.rpartition(MARK)
    number = re.match(rf"\s*{_NUMBER}", after) if mark else None
    return None if number is None else _value(number)


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text; None if there is none."""
    values = [_value(number) for number in re.finditer(_NUMBER, text)]
    return next((value for value in reversed(values) if value is not None), None)


def reference_number(reference: str) -> Decimal | None:
    """Return the number after the mark; a reference without the mark must be a number itself."""
    if MARK in reference:
        return marked_number(reference)
    number = re.fullmatch(_NUMBER, reference.strip())
    return None if number is None else _value(number)


def _value(number: re.Match[str]) -> Decimal | None:
    sign = (number["sign"] or "") + (number["inner"] or "")
    text = f"{sign}{number['digits'].rstrip('.,')}".replace(",", "").replace("\u2212", "-")
    try:
        return Decimal(text)
    except InvalidOperation:  # two signs, or several points, such as a date
        return None


class Gsm8kStrict(TextRate):
    """Share of answers whose number after the last ``####`` is the reference's.

    An answer without ``####`` and a number is wrong. Numbers are compared by value, so 72, 72.0 and
    $72. are equal.
    """

    higher_is_better = True
    needs_references = True
    skill = True
    number = staticmethod(marked_number)

    def reference_problem(self, reference: str) -> str | None:
        """A reference must end in its number."""
        if reference_number(reference) is None:
            return f"has no number behind '{MARK}' and is no number itself"
        return None

    def hits(self, outputs: Sequence[str], references: Sequence[str | None]) -> list[bool]:
        """True where the numbers are equal."""
        expected = [reference_number(r) for r in known(references)]
        if None in expected:
            raise ValueError(f"a reference has no number behind '{MARK}' and is no number itself")
        return [self.number(o) == e for o, e in zip(outputs, expected, strict=True)]


class Gsm8kFlexible(Gsm8kStrict):
    """As `Gsm8kStrict`, but the last number of the answer counts, with or without ``####``."""

    number = staticmethod(last_number)
