"""Which metrics a prompt set gets, and what is said about a wrong one."""

from __future__ import annotations

import pytest

from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics import METRICS, TextScore
from oneshot_lit.evaluation.metrics.registry import DEFAULTS, is_skill, metric_names

ORIGIN = "prompt set harmful"


@pytest.mark.parametrize("kind", DEFAULTS)
def test_defaults_with_references(kind: str) -> None:
    assert metric_names(kind, None, True, ORIGIN) == list(DEFAULTS[kind])
    assert set(DEFAULTS[kind]) <= set(METRICS)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("harmful", ["asr_keyword", "asr_keyword_prefix"]),
        ("benign", ["over_refusal"]),
        ("near_miss", ["over_refusal"]),
    ],
)
def test_defaults_without_references(kind: str, expected: list[str]) -> None:
    assert metric_names(kind, None, False, ORIGIN) == expected


def test_a_task_without_references_would_be_scored_by_nothing() -> None:
    with pytest.raises(OneShotError, match=f"{ORIGIN}: kind task is scored by references"):
        metric_names("task", None, False, ORIGIN)


def test_names_of_ones_own_are_kept_in_order() -> None:
    names = ["exact_match", "asr_keyword"]
    assert metric_names("benign", names, True, ORIGIN) == names
    assert metric_names("benign", [], True, ORIGIN) == []


@pytest.mark.parametrize(
    ("name", "known", "part"),
    [
        ("asr_keywrod", True, "did you mean 'asr_keyword'"),
        ("zzz", True, "known: asr_keyword"),
        ("exact_match", False, "needs a reference"),
        ("harmful_correct", False, "needs a reference"),
    ],
)
def test_mistakes_name_the_set(name: str, known: bool, part: str) -> None:
    with pytest.raises(OneShotError) as caught:
        metric_names("harmful", ["asr_keyword", name], known, ORIGIN)
    message = str(caught.value)
    assert message.startswith(f"{ORIGIN}: ")
    assert f"'{name}'" in message
    assert part in message
    assert "\n" not in message


def test_which_scores_are_skills() -> None:
    skills = {name for name in METRICS if is_skill(f"a set/{name}")}
    assert skills == {name for name, kind in METRICS.items() if kind.higher_is_better}
    assert {"exact_match", "rouge1", "gsm8k_strict", "sql_match"} <= skills
    assert not any(map(is_skill, ("a/asr_keyword", "a/nothing", "a/acc", "rouge1/over_refusal")))
    assert is_skill("lm_eval/gsm8k/exact_match,strict-match")
    assert not is_skill("lm_eval/wikitext/word_perplexity")
    # A set that happens to be called so is a set.
    assert is_skill("lm_eval/rouge1")


def test_a_metric_of_ones_own_may_be_a_skill(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tidy(TextScore):
        skill = True

    assert not is_skill("a/tidy")
    monkeypatch.setitem(METRICS, "tidy", Tidy)
    assert is_skill("a/tidy")


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_is(name: str) -> None:
    said = METRICS[name].__doc__
    assert said is not None
    assert said != TextScore.__doc__
    assert METRICS[name]().reference_problem("SELECT 4 -- #### 4") is None
