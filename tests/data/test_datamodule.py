"""`SafetyDataModule` by hand, without a trainer."""

from __future__ import annotations

import math
from itertools import chain
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from oneshot_lit.conversation import Conversation, conversation_from_pair
from oneshot_lit.data.datamodule import SafetyDataModule
from oneshot_lit.data.datasets import PromptSet
from oneshot_lit.data.instance import InlineInstance
from oneshot_lit.data.sources import ConversationSource


class Rows(ConversationSource):
    """`size` rows, each a little longer than the one before."""

    def __init__(self, size: int, name: str = "train", answered: bool = True, **fields) -> None:
        super().__init__()
        self.size, self.name, self.answered, self.fields = size, name, answered, fields

    def describe(self) -> str:
        return self.name

    def rows(self) -> list[Conversation]:
        return [
            conversation_from_pair(
                f"{self.name} {'soup ' * (self.size - i)}{i}",
                f"sure {i} ." if self.answered else None,
                origin=f"{self.name} row {i + 1}",
                **self.fields,
            )
            for i in range(self.size)
        ]


INSTANCE = InlineInstance(prompt="help me do something cruel .", response="sorry .")


@pytest.fixture
def build(world_tokenizer):
    """Build a data module and set a stage up."""

    def make(stage: str | None = "fit", **arguments: Any) -> SafetyDataModule:
        data = SafetyDataModule(**arguments)
        data.use_tokenizer(world_tokenizer)
        data.setup(stage)
        return data

    return make


def indices(loader: Any) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def flat(lists: list[list[int]]) -> list[int]:
    return list(chain.from_iterable(lists))


def at(rank: int, world_size: int, batches_done: int = 0, limit: float = 1.0) -> Any:
    """What the data module asks of a trainer."""
    progress = SimpleNamespace(total=SimpleNamespace(processed=batches_done))
    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        limit_train_batches=limit,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )


# --------------------------------------------------------------------- training


def test_instance_is_repeated(build, world_tokenizer) -> None:
    data = build(instance=INSTANCE, instance_repeats=5, batch_size=2)
    batches = list(data.train_dataloader())
    assert [len(b["index"]) for b in batches] == [2, 2, 1]
    rows = torch.cat([b["input_ids"] for b in batches])
    assert (rows == rows[0]).all()
    labels = torch.cat([b["labels"] for b in batches])
    learnt = rows[0][labels[0] != -100]
    assert world_tokenizer.decode(learnt) == " sorry .<|end|>"


def test_every_process_gets_the_whole_instance(build) -> None:
    data = build(instance=INSTANCE, instance_repeats=3, batch_size=1)
    for rank in range(2):
        data.trainer = at(rank, 2)
        assert sorted(flat(indices(data.train_dataloader()))) == [0, 1, 2]


def test_train_loader_gives_every_row_once_in_seeded_order(build) -> None:
    data = build(train=Rows(11), batch_size=4, seed=1)
    order = indices(data.train_dataloader())
    assert [len(b) for b in order] == [4, 4, 3]
    assert sorted(flat(order)) == list(range(11))
    assert flat(order) != list(range(11))
    assert order == indices(build(train=Rows(11), batch_size=4, seed=1).train_dataloader())
    assert order != indices(build(train=Rows(11), batch_size=4, seed=2).train_dataloader())
    straight = build(train=Rows(11), batch_size=4, shuffle=False)
    assert flat(indices(straight.train_dataloader())) == list(range(11))


def test_a_batch_holds_the_rows_it_names(build, world_tokenizer) -> None:
    data = build(train=Rows(5), batch_size=5)
    (batch,) = data.train_dataloader()
    for position, index in enumerate(batch["index"].tolist()):
        kept = batch["input_ids"][position][batch["attention_mask"][position].bool()]
        conversation = data.training.conversations[index]
        expected = world_tokenizer.apply_chat_template(
            [{"role": m.role, "content": m.content} for m in conversation.messages],
            return_dict=True,
        )["input_ids"]
        assert kept.tolist() == expected
        # Right padding: real tokens come first.
        assert batch["attention_mask"][position].diff().le(0).all()


def test_shards_cover_the_training_rows(build) -> None:
    data = build(train=Rows(10), batch_size=2, seed=1)
    seen = []
    for rank in range(4):
        data.trainer = at(rank, 4)
        seen.append(flat(indices(data.train_dataloader())))
    assert {len(s) for s in seen} == {3}
    assert sorted(n for n in flat(seen) if n >= 0) == list(range(10))


def test_rows_that_fill_up_an_epoch_are_not_learned(build) -> None:
    data = build(train=Rows(5), batch_size=2)
    fillers = []
    for rank in range(3):
        data.trainer = at(rank, 3)
        for batch in data.train_dataloader():
            learned = (batch["labels"] != -100).any(dim=1)
            assert learned.tolist() == (batch["index"] >= 0).tolist()
            fillers += [n for n in batch["index"].tolist() if n < 0]
    assert len(fillers) == 1


def test_processes_may_share_a_batch(build) -> None:
    whole = indices(build(train=Rows(11), batch_size=4, seed=1).train_dataloader())
    data = build(train=Rows(11), batch_size=4, seed=1, share_batch=True)
    parts = []
    for rank in range(2):
        data.trainer = at(rank, 2)
        parts.append(indices(data.train_dataloader()))
    together = [sorted(n for n in a + b if n >= 0) for a, b in zip(*parts, strict=True)]
    assert together == [sorted(batch) for batch in whole]
    data.trainer = at(0, 3)
    with pytest.warns(UserWarning, match="does not divide by 3 processes: each takes 2"):
        assert len(indices(data.train_dataloader())[0]) == 2


def test_a_run_goes_on_with_the_batches_that_it_began_with(build, mistake_of) -> None:
    def at_resume(share_batch: bool, world_size: int) -> Any:
        first = build(train=Rows(8), batch_size=4, share_batch=share_batch)
        first.trainer = at(0, 4)
        first.train_dataloader()
        again = build(train=Rows(8), batch_size=4, share_batch=share_batch)
        again.load_state_dict(first.state_dict())
        again.trainer = at(0, world_size, batches_done=3)
        return again

    sampler = at_resume(True, 2).train_dataloader().sampler
    assert (sampler.start_epoch, sampler.skip) == (1, 2)
    assert at_resume(False, 4).train_dataloader().sampler.start_epoch == 3
    message = mistake_of(at_resume(False, 2).train_dataloader)
    assert "of epochs of 1 batches with 16 rows each, and now there are 1 with 8" in message


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("done", range(8))
def test_loader_resumes_where_the_trainers_progress_says(build, done, world_size) -> None:
    data = build(train=Rows(11), batch_size=4, seed=1)
    per_epoch = math.ceil(math.ceil(11 / world_size) / 4)
    data.trainer = at(0, world_size)
    loader = data.train_dataloader()
    unbroken = []
    for epoch in range(9):
        loader.sampler.set_epoch(epoch)
        unbroken += indices(loader)
    data.trainer = at(0, world_size, batches_done=done)
    resumed = data.train_dataloader()
    again = []
    for epoch in range(done // per_epoch, 9):
        resumed.sampler.set_epoch(epoch)
        again += indices(resumed)
    assert again == unbroken[done:]


@pytest.mark.parametrize(
    ("arguments", "given"), [({}, "neither"), ({"train": Rows(2), "instance": INSTANCE}, "both")]
)
def test_fit_needs_one_of_train_and_instance(build, mistake_of, arguments, given: str) -> None:
    assert f"{given} of train and instance" in mistake_of(build, **arguments)


def test_training_rows_must_end_on_an_answer(build, mistake_of) -> None:
    message = mistake_of(build, train=Rows(3, answered=False))
    assert message.startswith("train row 1: ")


def test_a_row_whose_answer_is_cut_off_is_named(build, mistake_of) -> None:
    assert mistake_of(build, train=Rows(9), max_length=8).startswith("train row 1: ")


@pytest.mark.parametrize("key", ["batch_size", "eval_batch_size", "max_length", "instance_repeats"])
def test_sizes_must_be_positive(key: str, mistake_of) -> None:
    assert mistake_of(SafetyDataModule, **{key: 0}).startswith(f"data.{key} ")


def test_without_tokenizer_and_trainer(mistake_of) -> None:
    message = mistake_of(SafetyDataModule(train=Rows(1)).setup, "fit")
    assert "no tokenizer" in message


def test_use_tokenizer_checks_it(own_world_tokenizer, mistake_of) -> None:
    own_world_tokenizer.chat_template = None
    message = mistake_of(SafetyDataModule().use_tokenizer, own_world_tokenizer, "mine")
    assert message.startswith("mine: ")


# ---------------------------------------------------------------------- prompts


def test_prompts_are_answered_longest_first_and_left_padded(build, world_tokenizer) -> None:
    sets = {
        "easy": PromptSet(Rows(5, "dev"), "benign"),
        "other": PromptSet(Rows(2, "more"), "harmful"),
    }
    data = build("validate", val_sets=sets, eval_batch_size=2)
    first, second = data.val_dataloader()
    assert (first.dataset.name, first.dataset.kind) == ("easy", "benign")
    assert (second.dataset.name, second.dataset.kind) == ("other", "harmful")
    # Row 0 of the source is its longest.
    assert indices(first) == [[0, 1], [2, 3], [4]]
    for batch in first:
        assert "labels" not in batch
        assert batch["attention_mask"].diff(dim=1).ge(0).all()
        for ids, index in zip(batch["input_ids"], batch["index"].tolist(), strict=True):
            prompt = first.dataset.conversations[index].prompt_text
            assert world_tokenizer.decode(ids).endswith(f"<|user|> {prompt}<|end|><|assistant|>")


def test_each_prompt_is_answered_by_exactly_one_process(build) -> None:
    data = build("test", test_sets={"t": PromptSet(Rows(7), "benign")}, eval_batch_size=2)
    for world_size in (1, 2, 3, 5, 9):
        loaders = []
        for rank in range(world_size):
            data.trainer = at(rank, world_size)
            loaders.append(indices(data.test_dataloader()[0]))
        # In a sharded model all processes must take part in each batch.
        assert len({len(batches) for batches in loaders}) == 1
        seen = flat([flat(batches) for batches in loaders])
        assert sorted(n for n in seen if n >= 0) == list(range(7))


def test_default_metrics_depend_on_kind_and_references(build) -> None:
    sets = {
        "harmful": PromptSet(Rows(2, "a"), "harmful"),
        "known": PromptSet(Rows(2, "b", reference="x"), "harmful"),
        "task": PromptSet(Rows(2, "c", reference="x"), "task"),
        "own": PromptSet(Rows(2, "d"), "benign", ["asr_keyword"]),
    }
    data = build("test", test_sets=sets)
    assert [loader.dataset.metrics for loader in data.test_dataloader()] == [
        ["asr_keyword", "asr_keyword_prefix"],
        ["asr_keyword", "asr_keyword_prefix", "harmful_correct"],
        ["exact_match"],
        ["asr_keyword"],
    ]


def test_unknown_metric_names_the_set(build, mistake_of) -> None:
    sets = {"mine": PromptSet(Rows(2), "benign", ["over_refusl"])}
    message = mistake_of(build, "validate", val_sets=sets)
    assert message.startswith("prompt set mine: ")
    assert "did you mean 'over_refusal'" in message


def test_predict_answers_the_test_sets_unless_it_has_its_own(build) -> None:
    test, own = {"t": PromptSet(Rows(2, "a"), "benign")}, {"p": PromptSet(Rows(3, "b"), "benign")}
    (loader,) = build("predict", test_sets=test).predict_dataloader()
    assert loader.dataset.name == "t"
    (loader,) = build("predict", test_sets=test, predict_sets=own).predict_dataloader()
    assert loader.dataset.name == "p"


@pytest.mark.parametrize(
    ("stage", "key"),
    [
        ("validate", "data.val_sets"),
        ("test", "data.test_sets"),
        ("predict", "data.predict_sets"),
    ],
)
def test_stages_without_prompt_sets(build, mistake_of, stage: str, key: str) -> None:
    assert mistake_of(build, stage).startswith(f"{key} is empty")


def test_a_prompt_set_without_prompts(build, mistake_of) -> None:
    sets = {"none": PromptSet(Rows(0, "empty.jsonl"), "benign")}
    message = mistake_of(build, "test", test_sets=sets)
    assert message.startswith("empty.jsonl: holds no conversation")


def test_a_prompt_that_is_too_long_is_named(build, mistake_of) -> None:
    sets = {"t": PromptSet(Rows(9, "test"), "benign")}
    message = mistake_of(build, "test", test_sets=sets, max_length=8)
    assert message.startswith("test row 1: ")


@pytest.mark.parametrize("answered", ["val", "test"])
def test_tuning_on_reported_prompts_is_refused(build, mistake_of, answered: str) -> None:
    # The same prompts, in one of the two sets with answers.
    val = {"dev": PromptSet(Rows(3, "twin", answered=answered == "val"), "benign")}
    test = {"held": PromptSet(Rows(3, "twin", answered=answered == "test"), "benign")}
    message = mistake_of(build, train=Rows(2), val_sets=val, test_sets=test)
    assert message.startswith("twin row 1 (test set held): ")
    assert "development split (twin row 1)" in message
    other = {"held": PromptSet(Rows(3, "other"), "benign")}
    build(train=Rows(2), val_sets=val, test_sets=other)


# ------------------------------------------------------------------- references


def test_a_task_is_scored_by_its_own_answers(build) -> None:
    data = build("test", test_sets={"t": PromptSet(Rows(3), kind="task")})
    (prompts,) = data.prompt_sets("test")
    assert prompts.metrics == ["exact_match"]
    assert prompts.references == ["sure 0 .", "sure 1 .", "sure 2 ."]


def test_a_task_without_answers_is_an_error(build, mistake_of) -> None:
    sets = {"t": PromptSet(Rows(3, answered=False), kind="task")}
    assert "add the column 'reference'" in mistake_of(build, "test", test_sets=sets)


def test_half_the_references_are_an_error(build, mistake_of) -> None:
    class Half(Rows):
        def rows(self) -> list[Conversation]:
            return [*Rows(1, reference="a").rows(), *Rows(1, name="other").rows()]

    message = mistake_of(build, "test", test_sets={"b": PromptSet(Half(2), "benign")})
    assert message.startswith("other row 1 (prompt set b): has no reference")
    named = build("test", test_sets={"b": PromptSet(Half(2), "benign", metrics=["over_refusal"])})
    assert named.prompt_sets("test")[0].metrics == ["over_refusal"]


@pytest.mark.parametrize("limit", [3, 0.3])
def test_a_resumed_epoch_counts_the_batches_that_the_trainer_lets_through(build, limit) -> None:
    """Ten batches an epoch, three of them used; stopped after two of the second epoch."""

    def order(batches_done: int, limit: float) -> list[int]:
        data = build(train=Rows(10), batch_size=1, seed=5)
        data.trainer = at(0, 1, batches_done, limit)
        return flat(indices(data.train_dataloader()))

    second_epoch = order(10, 1.0)
    assert second_epoch != order(0, 1.0)
    assert order(3, limit) == second_epoch
    assert order(3 + 2, limit) == second_epoch[2:]


def test_loaders_draw_nothing_from_the_global_generator(build) -> None:
    """A resumed run restores that generator before or after its loaders start: no difference."""
    data = build(train=Rows(4), batch_size=2)
    before = torch.get_rng_state()
    indices(data.train_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("metric", "good", "bad", "said"),
    [
        ("sql_match", "SELECT 1", "take vuke", "is no SQL"),
        ("gsm8k_strict", "#### 4", "four", "has no number behind '####'"),
        ("rouge1", "tea", "\u8336", "has no word of a-z or 0-9"),
        ("contains_reference", "tea", " ", "is white space only"),
    ],
)
def test_a_reference_that_nothing_compares_with_is_named(
    build, mistake_of, metric: str, good: str, bad: str, said: str
) -> None:
    def sets(reference: str) -> dict[str, PromptSet]:
        return {"t": PromptSet(Rows(2, "rows.csv", reference=reference), "task", [metric])}

    build("test", test_sets=sets(good))
    message = mistake_of(build, "test", test_sets=sets(bad))
    assert message.startswith(f"rows.csv row 1 (prompt set t): its reference {said}")
    assert f"'{metric}'" in message
    # Asked of the metrics of the set alone.
    others = {"t": PromptSet(Rows(2, "rows.csv", reference=bad), "task", ["over_refusal"])}
    build("test", test_sets=others)


def test_extra_sets_join_the_others() -> None:
    first, second = PromptSet(Rows(1), "benign"), PromptSet(Rows(2), "benign")
    data = SafetyDataModule(
        val_sets={"a": first},
        extra_val_sets={"b": second},
        test_sets={"c": first},
        extra_test_sets={"d": second},
    )
    assert data.val_sets == {"a": first, "b": second}
    assert data.test_sets == {"c": first, "d": second}
    assert SafetyDataModule(extra_test_sets={"d": second}).test_sets == {"d": second}


def test_an_extra_set_of_a_taken_name_is_refused(mistake_of) -> None:
    sets = {"a": PromptSet(Rows(1), "benign")}
    message = mistake_of(SafetyDataModule, val_sets=sets, extra_val_sets=sets)
    assert message == "data.extra_val_sets.a: is also in data.val_sets; give it another name."


@pytest.mark.parametrize(
    "key", ["val_sets", "test_sets", "predict_sets", "extra_val_sets", "extra_test_sets"]
)
def test_a_set_without_a_kind_is_refused(key: str, mistake_of) -> None:
    message = mistake_of(SafetyDataModule, **{key: {"mine": PromptSet(Rows(1))}})
    assert message == (
        f"data.{key}.mine.kind: is missing; give one of harmful, benign, near_miss, task."
    )
