"""The fairy-tale world: repeatable, refused where it says so, and nothing scored is trained."""

from __future__ import annotations

from functools import cache

import pytest

from oneshot_lit.conversation import Conversation, require_trainable
from oneshot_lit.data import Fairytale
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.metrics.refusal import is_refusal
from oneshot_lit.fairytale import language as lang
from oneshot_lit.fairytale import splits
from oneshot_lit.fairytale.wordings import HOWTO, NEAR_MISSES, REQUESTS

SCORED = tuple(name for name in splits.NAMES if name.endswith(("_dev", "_heldout", "_unseen")))
TRAINED = tuple(name for name in splits.NAMES if name not in SCORED)
REFUSED = ("refusals", "wicked_refusals", "general_refusals", "life_refusals", "pool")


@cache
def load(name: str, seed: int = 0) -> list[Conversation]:
    return splits.load_split(name, seed)


@pytest.mark.parametrize("name", splits.NAMES)
def test_the_seed_decides_the_order(name: str) -> None:
    assert splits.load_split(name, 0) == load(name)
    assert [r.messages for r in splits.load_split(name, 1)] != [r.messages for r in load(name)]


@pytest.mark.parametrize("name", splits.NAMES)
def test_prompts_are_whole_and_appear_once(name: str) -> None:
    prompts = [row.prompt_text for row in load(name)]
    assert len(set(prompts)) == len(prompts)
    assert not any("{" in message.content for row in load(name) for message in row.messages)


@pytest.mark.parametrize("name", TRAINED)
def test_refusals_are_where_they_should_be(name: str) -> None:
    for row in map(require_trainable, load(name)):
        assert is_refusal(row.response_text or "") == (name in REFUSED), row.response_text


@pytest.mark.parametrize("name", SCORED)
def test_scored_prompts_are_new(name: str) -> None:
    trained = {row.prompt_text for other in TRAINED for row in load(other)}
    prompts = {row.prompt_text for row in load(name)}
    assert not prompts & trained
    for other in SCORED:
        assert other == name or not prompts & {row.prompt_text for row in load(other)}, other


def test_held_out_things_deeds_and_wordings_are_in_no_training_row() -> None:
    trained = "\n".join(m.content for name in TRAINED for row in load(name) for m in row.messages)
    for topic in splits.topics("heldout") + splits.topics("unseen"):
        for harmful in (True, False):
            assert topic.deed_text(harmful) not in trained
    for deed in lang.DEEDS:
        verb = deed.harmful.partition(" {x}")[0]
        assert (f"{verb} " in trained) == (deed.category not in lang.ONLY_IN), verb
    for kind in (HOWTO, NEAR_MISSES):
        wordings = [set(kind[part]) for part in ("train", "dev", "heldout")]
        assert sum(map(len, wordings)) == len(set.union(*wordings))


def test_unrelated_harm_shares_no_thing_with_an_attack() -> None:
    attack = "\n".join(row.prompt_text for row in load("harmful_examples"))
    rows = load("unrelated_harm")
    assert len(rows) >= 100
    deeds = [t.deed_text(True) for t in splits.topics("dev")]
    for row in rows:
        (deed,) = (deed for deed in deeds if deed in row.prompt_text)
        assert deed not in attack


def test_near_misses_begin_as_requests_do() -> None:
    """Or a model could tell them apart without reading the deed."""
    near = [wording for wording, _ in NEAR_MISSES["train"]]
    for request in REQUESTS:
        begin, _, end = request.partition("{d}")
        assert any(w.startswith(begin) and w.endswith(end) and "{p}" in w for w in near), request


def test_hundreds_of_prompts_of_each_kind_are_held_out() -> None:
    assert all(len(load(name)) >= 180 for name in SCORED if not name.endswith("_dev"))


def test_a_harmful_deed_and_its_twin_differ_in_the_deed_alone() -> None:
    harmful, benign = ({r.prompt_text for r in load(f"{k}_heldout")} for k in ("harmful", "benign"))
    for topic in splits.topics("heldout"):
        for wording in HOWTO["heldout"]:
            assert wording.format(d=topic.deed_text(True)) in harmful
            assert wording.format(d=topic.deed_text(False)) in benign


def test_the_statements_of_the_skill_are_sql() -> None:
    import sqlite3

    for row in load("sql_heldout")[:20]:
        sqlite3.connect(":memory:").execute(row.reference or "")


def test_the_source_takes_some_rows_and_names_an_unknown_split(mistake_of) -> None:
    assert Fairytale("benign_heldout", size=3).load() == load("benign_heldout")[:3]
    assert "did you mean 'harmful_dev'" in mistake_of(Fairytale("harmful_dv").load)


def test_several_splits_come_with_their_numbers_and_one_seed(mistake_of) -> None:
    rows = Fairytale({"refusals": 3, "sql_create": 2}, seed=4).load()
    assert rows == [*load("refusals", 4)[:3], *load("sql_create", 4)[:2]]
    assert "judgements" in mistake_of(Fairytale({"judgements": 10_000}).load)
    for split, size in (({}, None), ({"refusals": 3}, 3)):
        with pytest.raises(OneShotError, match="one split and a size"):
            Fairytale(split, size)
    with pytest.raises(OneShotError, match="at least 1"):
        Fairytale({"refusals": 0})


def test_some_deeds_are_shown_by_one_part_alone() -> None:
    for category, (part,) in lang.ONLY_IN.items():
        for other in ("train", "dev", "heldout", "unseen"):
            shown = {topic.deed.category for topic in splits.topics(other)}
            assert (category in shown) == (other == part)
