"""GSM8K's final number: what is read, what is not, and which numbers are equal."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oneshot_lit.evaluation.metrics import METRICS
from oneshot_lit.evaluation.metrics.numbers import last_number, marked_number

# answer, number behind the mark, last number
TABLE = [
    ("3 + 4 = 7\n#### 7", 7, 7),
    ("#### 1,234", 1234, 1234),
    ("####1234.", 1234, 1234),
    ("#### $1,234.50.", "1234.5", "1234.5"),
    ("#### -5", -5, -5),
    ("#### +5", 5, 5),
    ("#### \u22125", -5, -5),
    ("#### -$5", -5, -5),
    ("#### $-5", -5, -5),
    ("#### \u20ac 7", None, 7),
    ("#### .5", "0.5", "0.5"),
    ("#### 72 apples of 90", 72, 90),
    ("#### 5%", 5, 5),
    ("#### 7\n#### 8", 8, 8),
    ("#### 7\n\nQuestion: 3 more?", 7, 3),
    ("#### seven", None, None),
    ("####", None, None),
    ("### 7", None, 7),
    ("The answer is 7.", None, 7),
    ("2 and 3", None, 3),
    ("pages 5-6", None, 6),
    ("it fell to -6", None, -6),
    ("(-6)", None, -6),
    ("10-3=7, so 10-3", None, 3),
    ("wait... 7...", None, 7),
    ("#### 1.2.3", None, None),
    ("on 1.2.3 it was 9 of 1.2.3", None, 9),
    # As in lm-eval, commas are passed over wherever they stand in a number.
    ("#### 3,4", 34, 34),
    ("The answer is 3,4", None, 34),
    ("", None, None),
    ("no number", None, None),
]


@pytest.mark.parametrize(("answer", "marked", "last"), TABLE)
def test_table(answer: str, marked, last) -> None:
    assert marked_number(answer) == (None if marked is None else Decimal(marked))
    assert last_number(answer) == (None if last is None else Decimal(last))


@given(
    st.decimals(-(10**9), 10**9, places=3),
    st.sampled_from(["", "$"]),
    st.booleans(),
    st.sampled_from(["", ".", " dollars", "\nDone", ","]),
)
def test_any_number_however_it_is_written(value, currency: str, commas: bool, end: str) -> None:
    sign, plain = ("-" if value < 0 else ""), abs(value)
    text = f"{sign}{currency}{plain:,}" if commas else f"{sign}{currency}{plain:f}"
    assert marked_number(f"so 9 of 10\n#### {text}{end}") == value
    assert last_number(f"so 9 of 10 and {text}{end}") == value


@given(st.text())
def test_no_answer_breaks_it(text: str) -> None:
    for found in (marked_number(text), marked_number("####" + text), last_number(text)):
        assert found is None or found == found


@pytest.mark.parametrize(
    ("output", "reference", "strict", "flexible"),
    [
        ("#### 72", "a\n#### 72", True, True),
        ("#### 72.0", "#### 72", True, True),
        ("#### 1,000", "#### 1000", True, True),
        ("#### 72", "72", True, True),
        ("#### $72", "$72", True, True),
        ("It is 72.", "#### 72", False, True),
        ("#### 72, not 71", "#### 72", True, False),
        ("#### -72", "#### 72", False, False),
        ("#### 7", "#### 72", False, False),
        ("#### 720", "#### 72", False, False),
        ("", "#### 72", False, False),
    ],
)
def test_right_or_wrong(output: str, reference: str, strict: bool, flexible: bool) -> None:
    for name, right in (("gsm8k_strict", strict), ("gsm8k_flexible", flexible)):
        assert METRICS[name]().scores([output], [reference]) == [float(right)]


@pytest.mark.parametrize(
    "reference", ["seven", "", "about 72", "72 apples", "a 72\n#### b", "1.2.3"]
)
def test_a_reference_must_end_in_its_number(reference: str) -> None:
    metric = METRICS["gsm8k_strict"]()
    assert "number" in (metric.reference_problem(reference) or "")
    with pytest.raises(ValueError, match="no number"):
        metric.update(["#### 1"], [reference])
    assert metric.reference_problem("a\n#### 72") is None


def test_strict_agrees_with_the_common_definition_where_both_read_a_whole_number() -> None:
    # lm-eval's strict-match: this pattern, then without commas and a point at the end.
    import re

    for answer, _, _ in TABLE:
        found = re.search(r"#### (\-?[0-9\.\,]+)", answer)
        if found and answer.count("####") == 1 and marked_number(answer) is not None:
            assert Decimal(re.sub(r"\.$", "", found[1].replace(",", ""))) == marked_number(answer)
