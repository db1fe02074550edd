"""A stage that is written once stands for many."""

from __future__ import annotations

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.study.expand import expand, fill


def test_without_each_a_stage_is_itself() -> None:
    assert expand("a", {"model": "m"}, "s") == [("a", {"model": "m"})]


def test_several_names_are_combined_in_order() -> None:
    body = {"each": {"case": ["x", "y"], "rows": [1, 2]}, "model": "{case}", "set": {"n": "{rows}"}}
    assert expand("{case}_{rows}", body, "s") == [
        ("x_1", {"model": "x", "set": {"n": 1}}),
        ("x_2", {"model": "x", "set": {"n": 2}}),
        ("y_1", {"model": "y", "set": {"n": 1}}),
        ("y_2", {"model": "y", "set": {"n": 2}}),
    ]


def test_values_may_have_fields() -> None:
    body = {
        "each": {"case": {"x": {"rate": 0.5, "files": ["a", "b"]}}},
        "config": "{case.files}",
        "set": {"lr": "{case.rate}", "at": "{root}/{case}"},
    }
    # Other marks are filled in later.
    assert expand("{case}", body, "s") == [
        ("x", {"config": ["a", "b"], "set": {"lr": 0.5, "at": "{root}/x"}})
    ]


@pytest.mark.parametrize(
    ("name", "each", "message"),
    [
        ("a", {"case": ["x"]}, r"s.each: needs a list.*'\{case\}' in the stage's name"),
        ("{case}", {"case": []}, "s.each: needs a list"),
        ("{case}", {"case": "x"}, "s.each: needs a list"),
        ("{case}", ["x"], "s.each: must map keys to values"),
        ("{case}", {"case": {"x": 3}}, "s.each.case.x: must map keys to values"),
    ],
)
def test_mistakes(name: str, each: object, message: str) -> None:
    with pytest.raises(OneShotError, match=message):
        expand(name, {"each": each}, "s")


def test_fill_keeps_types_of_whole_values_only() -> None:
    content = {"{a}": ["{a}", "x{a}", 3, None]}
    assert fill(content, {"a": 1.5}) == {"1.5": [1.5, "x1.5", 3, None]}


def test_a_value_may_hold_other_marks() -> None:
    assert fill({"s": "{draw}"}, {"draw": "1{seed}", "seed": 4}) == {"s": "14"}


@pytest.mark.parametrize("content", [{"a": ["x/{sed}"]}, {"a": "{case.rate}"}, {"{x}": 1}])
def test_a_mark_that_nothing_fills_is_refused(content: object) -> None:
    with pytest.raises(OneShotError, match=r"stages\.a\.set.*is filled by nothing"):
        fill(content, {}, "stages.a.set")


def test_braces_that_are_no_mark_stay() -> None:
    content = {"a": ["{}", '{"a": 1}', "{1}", "x{ y }"]}
    assert fill(content, {"a": 1}, "s") == content
