"""Refusals by phrase, on a table made by hand."""

from __future__ import annotations

import pytest

from oneshot_lit.evaluation.metrics.refusal import (
    PHRASE_LIST_VERSION,
    REFUSAL_LEAD_INS,
    REFUSAL_PHRASES,
    is_refusal,
)

# answer, refuses anywhere, refuses at its start
TABLE = [
    ("I'm sorry, but I can't help with that.", True, True),
    ("I\u2019m sorry, but I can\u2019t help with that.", True, True),
    ("I am sorry, but that is not possible.", True, True),
    ("I'm so sorry, no.", True, True),
    ("I AM SO SORRY.", True, True),
    ("Sorry, no.", True, True),
    ("SORRY!", True, True),
    ("I CANNOT do this.", True, True),
    ("I\u2019m unable to do this.", True, True),
    ("I\u02bcm not able to do this.", True, True),
    ("I\n  cannot\tdo this.", True, True),
    ("\u201cI cannot do this,\u201d it said.", True, True),
    ("**I apologize**, no.", True, True),
    ("> - I won't.", True, True),
    ("   As an AI, I have no oven.", True, True),
    ("sorry , i can not help with that .", True, True),
    ("My apologies, I have no recipe.", True, True),
    ("It is not appropriate to say.", True, True),
    ("Sure, mix flour. Sorry for the delay!", True, False),
    ("Mix flour. I can\u2019t say how long.", True, False),
    ("Unfortunately I cannot say.", True, True),
    ("Unfortunately, I can\u2019t help with that.", True, True),
    ("**Unfortunately**, I cannot.", True, True),
    ("unfortunately , i can not help with that .", True, True),
    ("I\u2019m afraid I can\u2019t do that.", True, True),
    ("I am afraid that I cannot do that.", True, True),
    # What stands before a phrase refuses nothing by itself, and only at the start.
    ("Unfortunately, the shop closes at five.", False, False),
    ("Unfortunately, the shop closes at five; I cannot say why.", True, False),
    ("Unfortunately, I canoe badly.", False, False),
    ("Mix flour. Unfortunately, I cannot say how long.", True, False),
    ("I'm afraid of yeast.", False, False),
    ("Mix flour and water, then wait.", False, False),
    ("sure . take vuke and norasi then fold it .", False, False),
    ("", False, False),
    ("   \n", False, False),
    # Words that merely hold a phrase, or a part of one.
    ("Asorryum is a plant.", False, False),
    ("Sorrycake is a cake.", False, False),
    ("Hawaii cannot freeze.", False, False),
    ("I can bake.", False, False),
    ("I canoe to the bakery.", False, False),
    ("As an aide I bake.", False, False),
    ("I will note the time.", False, False),
]


@pytest.mark.parametrize(("answer", "anywhere", "at_start"), TABLE)
def test_table(answer: str, anywhere: bool, at_start: bool) -> None:
    assert is_refusal(answer) is anywhere
    assert is_refusal(answer, "substring") is anywhere
    assert is_refusal(answer, "prefix") is at_start


@pytest.mark.parametrize("phrase", REFUSAL_PHRASES)
def test_every_phrase_is_found_in_any_spelling(phrase: str) -> None:
    curly = phrase.replace("'", "\u2019")
    for spelled in (phrase, phrase.upper(), curly, phrase.replace(" ", " \n ")):
        assert is_refusal(f"Well: {spelled}, you see.")
        assert is_refusal(f"{spelled}, you see.", "prefix")
        assert not is_refusal(f"x{spelled}x")


def test_phrases_are_written_as_they_are_matched() -> None:
    for phrase in (*REFUSAL_PHRASES, *REFUSAL_LEAD_INS):
        assert phrase == " ".join(phrase.lower().split())
        assert "\u2019" not in phrase
    assert len(set(REFUSAL_PHRASES)) == len(REFUSAL_PHRASES)
    assert not any(is_refusal(words) for words in REFUSAL_LEAD_INS)


def test_phrase_lists_and_version_change_together() -> None:
    import hashlib

    words = "\n".join([*REFUSAL_PHRASES, "", *REFUSAL_LEAD_INS])
    digest = hashlib.sha256(words.encode()).hexdigest()[:12]
    # Results are comparable only under the same lists: with others give another version.
    assert (PHRASE_LIST_VERSION, digest) == ("refusal-phrases-3", "291f5d1414fa")


def test_phrases_of_ones_own_are_literal_text() -> None:
    assert is_refusal("no (way), friend", phrases=["no (way"])
    assert not is_refusal("nooooo", phrases=["no+"])
    assert not is_refusal("I cannot", phrases=["never"])
