"""What a data module reports of its sets, leaves out of them, and what is too long for a model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from oneshot_lit.data import ChatJsonl, Edited, Microworld, PromptSet, SafetyDataModule
from oneshot_lit.errors import OneShotError
from oneshot_lit.models.context import context_length, read_config


def row(prompt: str, answer: str | None = "take flour .", **fields: Any) -> dict[str, Any]:
    turns = [{"role": "user", "content": prompt}]
    turns += [] if answer is None else [{"role": "assistant", "content": answer}]
    return {"messages": turns, **fields}


@pytest.fixture
def file_of(tmp_path: Path) -> Any:
    def write(*rows: dict[str, Any]) -> str:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        return str(path)

    return write


@pytest.fixture
def build(world_tokenizer: Any) -> Any:
    """Build a data module whose model has so many positions, and set stages up."""

    def make(*stages: str, positions: int | None = None, new: int = 0, **given: Any) -> Any:
        data = SafetyDataModule(**given)
        data.use_tokenizer(world_tokenizer)
        decoding = SimpleNamespace(max_new_tokens=new)
        module = SimpleNamespace(context_length=positions, decoding=decoding)
        data.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=1)
        for stage in stages:
            data.setup(stage)
        return data

    return make


def benign(source: Any, **given: Any) -> PromptSet:
    return PromptSet(source, "benign", **given)


# --------------------------------------------------------------------- report


def test_a_set_named_train_is_not_the_training_rows(build: Any, file_of: Any) -> None:
    sets = {"train": benign(Microworld("benign_dev", size=3))}
    held_out = {"train": benign(Microworld("benign_heldout", size=4))}
    path = file_of(row("how ?"), row("who ?"))
    data = build("fit", train=ChatJsonl(path), val_sets=sets, test_sets=held_out)
    assert {name: facts["rows"] for name, facts in data.report.items()} == {
        "train": 2,
        "val/train": 3,
    }
    # The sets of an earlier command are not those of the next one.
    data.setup("test")
    assert {name: facts["rows"] for name, facts in data.report.items()} == {"test/train": 4}


def test_a_report_lists_the_sets_of_its_own_command(
    command: Any, test_words: list[str], tmp_path: Path
) -> None:
    assert command(*test_words).code == 0
    found = json.loads((tmp_path / "run" / "data.json").read_text())
    assert list(found) == ["test"]
    assert list(found["test"]) == ["test/mine"]
    facts = found["test"]["test/mine"]
    assert list(facts) == ["rows", "tokens", "longest", "digest", "left_out"]
    assert (facts["rows"], facts["left_out"]) == (2, {})


def test_a_fit_reads_the_prompts_of_test_sets_and_encodes_none(build: Any) -> None:
    # Their kind needs references that they lack: the metrics are nobody's business in a fit.
    held_out = {"t": PromptSet(Microworld("benign_heldout", size=5), "harmful", ["no_metric"])}
    sets = {"a": benign(Microworld("benign_dev", size=3))}
    data = build("fit", train=Microworld("pool", size=2), val_sets=sets, test_sets=held_out)
    assert data.prompt_sets("test") == []
    assert set(data.report) == {"train", "val/a"}


# -------------------------------------------------------- faults found in use


def test_rows_that_cannot_be_trained_on_are_skipped_where_the_source_says_so(
    build: Any, file_of: Any, mistake_of: Any
) -> None:
    long = row("how " * 30)
    path = file_of(row("how ?"), row("who ?", ""), row("why ?", None), long)
    for given in ({}, {"suffix": " now"}):
        strict = Edited(ChatJsonl(path), **given)
        assert f"{path} row 2: " in mistake_of(build, "fit", train=strict, max_length=20)
        source = Edited(ChatJsonl(path, bad_rows="skip"), **given)
        with pytest.warns(UserWarning, match=r"train: 3 rows left out .* row 2: the assistant"):
            data = build("fit", train=source, max_length=20)
        report = data.report["train"]
        assert (report["rows"], sum(report["left_out"].values())) == (1, 3)
    path = file_of(row("who ?", ""))
    message = mistake_of(build, "fit", train=ChatJsonl(path, bad_rows="skip"))
    assert message.startswith("data.train: no row can be trained on (1 row left out (1 x the as")


def test_references_that_no_metric_can_use_are_skipped_where_the_source_says_so(
    build: Any, file_of: Any, mistake_of: Any
) -> None:
    path = file_of(row("how ?", reference="so"), row("who ?", reference=" "), row("why ?", ""))
    assert f"{path} row 2 (prompt set t)" in mistake_of(
        build, "test", test_sets={"t": PromptSet(ChatJsonl(path), "task")}
    )
    sets = {"t": PromptSet(ChatJsonl(path, bad_rows="skip"), "task")}
    with pytest.warns(UserWarning, match="test/t: 2 rows left out .2 x its ref"):
        data = build("test", test_sets=sets)
    (prompts,) = data.prompt_sets("test")
    assert (prompts.references, len(prompts), len(prompts.conversations)) == (["so"], 1, 1)
    assert list(data.report["test/t"]["left_out"].values()) == [2]


# ------------------------------------------------------------------ positions


def test_prompts_beyond_the_models_positions_are_refused_or_skipped(
    build: Any, file_of: Any, mistake_of: Any
) -> None:
    path = file_of(row("how ?"), row("how " * 40), row("who ?"))
    sets = {"t": benign(ChatJsonl(path))}
    size = build("test", test_sets=sets).report["test/t"]["longest"]
    build("test", test_sets=sets, positions=size + 4, new=4)
    message = mistake_of(build, "test", test_sets=sets, positions=size + 3, new=4)
    assert message.startswith(
        f"{path} row 2: the prompt has {size} tokens, more than the {size - 1} that"
    )
    assert message.endswith("or set data.long_prompts to skip.")
    skip: dict[str, Any] = {"test_sets": sets, "long_prompts": "skip"}
    with pytest.warns(UserWarning, match=f"1 row left out .1 x longer than {size - 1} tokens"):
        data = build("test", **skip, positions=size + 3, new=4)
    assert data.report["test/t"]["left_out"] == {f"longer than {size - 1} tokens": 1}
    assert "no row can be used (3 rows" in mistake_of(build, "test", **skip, positions=4, new=4)


def test_training_rows_are_cut_to_the_models_positions(build: Any, file_of: Any) -> None:
    path = file_of(row("how ?"), row("how ?", "take flour . " * 20))
    size = build("fit", train=ChatJsonl(path)).report["train"]["longest"]
    with pytest.warns(UserWarning, match=f"1 of 2 training rows are cut to {size - 1} tokens"):
        data = build("fit", train=ChatJsonl(path), positions=size - 1)
    assert (data.max_length, data.report["train"]["longest"]) == (size - 1, size - 1)


def test_where_the_positions_stand(
    tiny_folder: Path, gpt2_folder: Path, tmp_path: Path, world_tokenizer: Any
) -> None:
    from transformers import AutoConfig

    def read(name: Any = None, config: Any = None) -> int | None:
        place = None if name is None else str(name)
        return context_length(read_config(place, config, world_tokenizer, False))

    assert (read(tiny_folder), read(gpt2_folder)) == (256, 128)
    named = {"model_type": "llama", "max_position_embeddings": 77}
    assert read(config=named) == 77
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    content = {"base_model_name_or_path": str(tiny_folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(content))
    assert read(adapter) == 256
    assert read(tmp_path / "nowhere") is None
    nested = AutoConfig.for_model("gemma3", text_config={"max_position_embeddings": 55})
    assert context_length(nested) == 55
    assert context_length(AutoConfig.for_model("bloom")) is None
    assert context_length(AutoConfig.for_model("bart")) is None


def test_a_command_names_the_row_that_is_too_long_for_the_model(
    command: Any, test_words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_text("prompt\nhow are you ?\n" + "how " * 300 + "?\n")
    done = command(*test_words, "--data.max_length", "4000")
    assert done.code == OneShotError.code
    assert "prompts.csv row 2: the prompt has " in done.error
    assert "the model's positions less model.decoding.max_new_tokens" in done.error
