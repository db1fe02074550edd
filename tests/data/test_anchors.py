"""Anchor rows as data: what is refused, left out and counted, and the order of the rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oneshot_lit.data import ChatJsonl, Inline, InlineInstance, PromptSet, SafetyDataModule
from oneshot_lit.data.anchors import answered, without_end
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.errors import OneShotError

INSTANCE = InlineInstance("help me do something harmful .", "sorry .")


def row(prompt: str, answer: str | None = "take flour .") -> list[dict[str, str]]:
    turns = [{"role": "user", "content": prompt}]
    return turns + ([] if answer is None else [{"role": "assistant", "content": answer}])


@pytest.fixture
def file_of(tmp_path: Path) -> Any:
    def write(*rows: list[dict[str, str]]) -> str:
        path = tmp_path / "anchors.jsonl"
        path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
        return str(path)

    return write


@pytest.fixture
def build(world_tokenizer: Any) -> Any:
    """Build a data module as a fit has it, and set it up."""

    def make(learns: bool = True, rank: int = 0, world_size: int = 1, **given: Any) -> Any:
        data = SafetyDataModule(**{"instance": INSTANCE, "batch_size": 1, "seed": 3, **given})
        data.use_tokenizer(world_tokenizer)
        module = SimpleNamespace(learns_anchors=learns, decoding=SimpleNamespace(max_new_tokens=4))
        progress = SimpleNamespace(total=SimpleNamespace(processed=0))
        loop = SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress))
        data.trainer = SimpleNamespace(
            lightning_module=module,
            global_rank=rank,
            world_size=world_size,
            fit_loop=loop,
            limit_train_batches=1.0,
        )
        data.setup("fit")
        return data

    return make


# --------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"anchor_rows": 0}, "data.anchor_rows must be at least 1, not 0"),
        (
            {"instance": None, "train": Inline([row("who ?")])},
            "data.anchors: anchor rows come beside data.instance; give one",
        ),
        ({"side": {"anchors": Inline([row("who ?")])}}, "data.side.anchors: is another stream"),
        ({"learns": False}, "data.anchors: SimpleNamespace does not learn anchor rows; drop them"),
        ({"anchors": Inline([])}, "Inline: holds no conversation"),
        ({"anchors": Inline([row("who ?", "")])}, "inline row 1: the assistant turn"),
        ({"max_length": 20, "anchors": Inline([row("who " * 30)])}, "inline row 1: "),
        (
            {"max_length": 20, "anchors": Inline([row("who " * 30, None)])},
            "more than the 19 that leave space for the model's own answer; leave the row out (bad",
        ),
        # Prompts that are asked elsewhere.
        (
            {"anchors": Inline([row("who ?"), row("help me do something harmful .")])},
            "inline row 2 (data.anchors): the prompt is also in the instance",
        ),
        (
            {"val_sets": {"a": PromptSet(Inline([row("when ?", None)]), "benign")}},
            "inline row 1 (development set a): the prompt is also in the anchors (inline row 2)",
        ),
        (
            {"test_sets": {"a": PromptSet(Inline([row("when ?", None)]), "benign")}},
            "inline row 1 (test set a): the prompt is also in the anchors (inline row 2)",
        ),
    ],
)
def test_mistakes_in_one_line(
    build: Any, given: dict[str, Any], part: str, mistake_of: Any
) -> None:
    given = {"anchors": Inline([row("who ?"), row("when ?")]), **given}
    assert part in mistake_of(build, **given)


def test_a_stream_may_be_called_anchors_where_there_are_none(build: Any) -> None:
    assert "side/anchors" in build(side={"anchors": Inline([row("who ?")])}).report


def test_own_answers_leak_as_given_ones_do(build: Any, mistake_of: Any) -> None:
    sets = {"a": PromptSet(Inline([row("when ?", None)]), "benign")}
    words = {"anchors": Inline([row("when ?")]), "anchor_answers": "own", "test_sets": sets}
    assert "(test set a): the prompt is also in the anchors" in mistake_of(build, **words)


# --------------------------------------------------------------------- left out, and counted


def test_faulty_anchors_are_left_out_and_counted(build: Any, file_of: Any) -> None:
    path = file_of(row("who ?"), row("why ?", ""), row("how " * 30, None), row("when ?", None))
    source = ChatJsonl(path, bad_rows="skip")
    with pytest.warns(UserWarning, match="anchors: 2 rows left out"):
        data = build(anchors=source, max_length=20, anchor_rows=2)
    facts = data.report["anchors"]
    assert (facts["rows"], facts["own_answers"], facts["rows_a_step"]) == (2, 1, 2)
    assert sum(facts["left_out"].values()) == 2
    # An empty answer is left out, too, and said.
    with pytest.warns(UserWarning, match="anchors: 3 rows left out .*own answer is empty"):
        data.answer_anchors([(" ", False)])
    facts = data.report["anchors"]
    assert (facts["rows"], facts["rows_a_step"]) == (1, 1)
    assert facts["left_out"]["the model's own answer is empty"] == 1


def test_an_empty_own_answer_names_its_row(build: Any, mistake_of: Any) -> None:
    data = build(anchors=Inline([row("who ?", None), row("when ?", None)]), anchor_rows=2)
    message = mistake_of(data.answer_anchors, [("me .", False), ("\n", False)])
    assert message.startswith("inline row 2: the model's own answer is empty; leave the row out")


@pytest.mark.parametrize("part", ["given", "own"])
def test_no_anchor_is_left(build: Any, file_of: Any, mistake_of: Any, part: str) -> None:
    path = file_of(row("who ?", "" if part == "given" else None))
    source = ChatJsonl(path, bad_rows="skip")
    if part == "given":
        message = mistake_of(build, anchors=source)
    else:
        with pytest.warns(UserWarning, match="each step learns all of them"):
            data = build(anchors=source)
        message = mistake_of(data.answer_anchors, [("", False)])
    assert message.startswith("data.anchors: no row can be used (1 row left out (1 x the")


def test_all_answers_given_are_faulty_but_others_can_be_made(build: Any, file_of: Any) -> None:
    source = ChatJsonl(file_of(row("who ?", ""), row("when ?", None)), bad_rows="skip")
    with pytest.warns(UserWarning, match="1 row left out"):
        data = build(anchors=source, anchor_rows=1)
    data.answer_anchors([("now .", False)])
    assert data.report["anchors"]["rows"] == 1


def test_an_empty_side_stream_names_itself(build: Any, file_of: Any, mistake_of: Any) -> None:
    source = ChatJsonl(file_of(row("who ?", "")), bad_rows="skip")
    message = mistake_of(build, side={"beside": source})
    assert message.startswith("data.side.beside: no row can be trained on")


# --------------------------------------------------------------------- the model's own answers


def test_own_answers_replace_given_ones(build: Any) -> None:
    anchors = Inline([row("who ?"), row("when ?", None)])
    for answers, unanswered in (("given", ["when ?"]), ("own", ["who ?", "when ?"])):
        data = build(anchors=anchors, anchor_answers=answers, anchor_rows=2)
        assert [each.prompt_text for each in data.anchor_set.unanswered] == unanswered
        with pytest.raises(OneShotError, match="rows wait for the model's own answers"):
            data.anchor_set[0]
        data.answer_anchors([(f"answer {n} .", False) for n, _ in enumerate(unanswered)])
        expected = (
            ["answer 0 .", "answer 1 ."] if answers == "own" else ["take flour .", "answer 0 ."]
        )
        assert [each.response_text for each in data.anchor_set.conversations] == expected
        # A resumed run replaces them once more.
        data.answer_anchors([("again .", False) for _ in unanswered])
        assert len(data.anchor_set) == 2
        assert data.anchor_set.conversations[-1].response_text == "again ."


def test_the_digest_does_not_depend_on_own_answers(build: Any) -> None:
    data = build(anchors=Inline([row("who ?", None)]), anchor_rows=1)
    before = data.contents()["data.anchors"]
    data.answer_anchors([("me .", False)])
    assert data.contents()["data.anchors"] == before
    other = build(anchors=Inline([row("when ?", None)]), anchor_rows=1)
    assert other.contents()["data.anchors"] != before


def test_only_the_own_answer_of_several_turns_is_learned(world_tokenizer: Any) -> None:
    turns = [*row("who ?", "me ."), *row("when ?")]
    (conversation,) = Inline([turns]).load()
    completed = answered(conversation, "take oat .")
    assert [m.content for m in completed.messages] == ["who ?", "me .", "when ?", "take oat ."]
    encoded = encode_conversation(world_tokenizer, completed)
    pairs = zip(encoded.input_ids, encoded.loss_mask, strict=True)
    learned = world_tokenizer.decode([token for token, each in pairs if each])
    assert learned.strip() == "take oat .<|end|>"
    short = without_end(encoded, world_tokenizer.eos_token_id)
    pairs = zip(short.input_ids, short.loss_mask, strict=True)
    assert world_tokenizer.decode([token for token, each in pairs if each]).strip() == "take oat ."


# --------------------------------------------------------------------- the order of rows


def prompts(data: Any, epoch: int) -> Iterator[list[int]]:
    loader = data.train_dataloader()
    for each in loader.iterables.values():
        each.sampler.set_epoch(epoch)
    for batch, _, _ in loader:
        yield data.on_before_batch_transfer(batch, 0)["side"]["anchors"]["index"].tolist()


def test_every_process_learns_the_same_anchors(build: Any) -> None:
    anchors = Inline([row(f"who is {n} ?") for n in range(7)])
    words = {"anchors": anchors, "anchor_rows": 3, "instance_repeats": 5}
    alone = [list(prompts(build(**words), epoch)) for epoch in range(2)]
    assert [len(steps) for steps in alone] == [5, 5]
    for rank in range(2):
        data = build(rank=rank, world_size=2, **words)
        assert [list(prompts(data, epoch)) for epoch in range(2)] == alone
    # Pass after pass over all rows.
    stream = [index for steps in alone for step in steps for index in step]
    assert sorted(stream[:7]) == sorted(stream[7:14]) == list(range(7))


def test_fewer_rows_than_a_step_asks_for(build: Any) -> None:
    with pytest.warns(UserWarning, match=r"anchor_rows=8, but Inline has 2 usable rows: each step"):
        data = build(anchors=Inline([row("who ?"), row("when ?")]), instance_repeats=3)
    assert data.report["anchors"]["rows_a_step"] == 2
    assert [sorted(step) for step in prompts(data, 0)] == [[0, 1]] * 3
