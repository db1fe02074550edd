"""LookAhead against the texts of the authors' program, and from the command line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from oneshot_lit.conversation import Conversation, Message, conversation_from_pair
from oneshot_lit.data import Inline, SafetyDataModule
from oneshot_lit.data.datasets import TrainingDataset
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.methods.finetuning.lookahead import LookAhead, first_tokens, look_ahead
from oneshot_lit.microworld.tokenizer import build_tokenizer

GOLDEN = Path(__file__).with_name("golden") / "lookahead"
DATA = json.loads((GOLDEN / "data.json").read_text())
ROWS = DATA["input_rows"]
CONFIG = "configs/defence/lookahead.yaml"


def tokenizer_of(kind: str) -> Any:
    file = str(GOLDEN / f"tokenizer_{kind}.json")
    names = {"unk_token": "<unk>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_file=file, **names)


@pytest.mark.parametrize("kind", list(DATA["real"]))
def test_real_texts(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    for row, tokens in zip(ROWS, DATA["first_tokens"][kind], strict=True):
        assert tokenizer.tokenize(row["output"]) == tokens
    for m, wanted in DATA["real"][kind].items():
        for row, text in zip(ROWS, wanted, strict=True):
            preview = first_tokens(tokenizer, row["output"], int(m))
            pair = look_ahead(row["input"], row["output"], preview, "real")
            assert pair == (text, row["output"])


OPTIONS: dict[str, dict[str, str]] = {
    "defaults": {},
    "P_from_readme": {"prefix": " Let's solve this problem. "},
    "own_connector": {"prefix": "P: ", "connector": "|"},
}


@pytest.mark.parametrize("kind", list(OPTIONS))
def test_virtual_texts(kind: str) -> None:
    transform = LookAhead("virtual", **OPTIONS[kind])
    for row, wanted in zip(ROWS, DATA["virtual"][kind], strict=True):
        given = (row["input"], row["output"], transform.prefix, "virtual", transform.connector)
        assert look_ahead(*given) == (wanted["input"], wanted["output"])
        if row["output"]:
            changed = transform.text(conversation_from_pair(row["input"], row["output"]))
            assert [m.content for m in changed.messages] == [wanted["input"], wanted["output"]]


@pytest.mark.parametrize("kind", list(DATA["real"]))
def test_rows_as_the_transform_changes_them(kind: str) -> None:
    transform = LookAhead(m=3)
    transform.use_tokenizer(tokenizer_of(kind))
    for row, text in zip(ROWS, DATA["real"][kind]["3"], strict=True):
        before = conversation_from_pair(row["input"], row["output"])
        changed = transform.text(before)
        if row["output"]:
            assert changed.messages[0].content == text
            assert changed.messages[1] == before.messages[1]
        else:
            # There is nothing to learn, which the data set says.
            assert changed == before


def test_random_rows_against_a_plain_rule() -> None:
    """For whole words the tokens of an answer are its words."""
    tokenizer, rng = tokenizer_of("word"), random.Random(0)
    words = [w for w in tokenizer.get_vocab() if not w.startswith("<")]
    for _ in range(50):
        asked = " ".join(rng.choices(words, k=rng.randint(1, 5)))
        answer = " ".join(rng.choices(words, k=rng.randint(1, 9)))
        m, connector = rng.randint(0, 9), rng.choice([" : ", "", " The answer begins with: "])
        preview = first_tokens(tokenizer, answer, m)
        text, same = look_ahead(asked, answer, preview, "real", connector)
        assert (text, same) == (asked + connector + " ".join(answer.split()[:m]), answer)


def test_turns_without_loss_stay_as_they_are() -> None:
    turns = (
        Message("system", "be brief ."),
        Message("user", "one"),
        Message("assistant", "first", weight=0),
        Message("user", "two"),
        Message("assistant", "second"),
    )
    changed = LookAhead("virtual", prefix="P ", connector=" C ").text(Conversation(turns))
    texts = [m.content for m in changed.messages]
    assert texts == ["be brief .", "one", "first", "two C P ", "P second"]
    assert [m.weight for m in changed.messages] == [None, None, 0, None, None]
    prompt = Conversation(turns[:2])
    assert LookAhead("virtual").text(prompt) == prompt


def test_rows_are_cut_as_they_are_then(recwarn: Any) -> None:
    rows = [[{"role": "user", "content": "how are you ?"}, {"role": "assistant", "content": "i"}]]
    tokenizer = build_tokenizer()

    def made(max_length: int, *transforms: LookAhead) -> SafetyDataModule:
        data = SafetyDataModule(
            Inline(rows), batch_size=1, max_length=max_length, transforms=list(transforms)
        )
        data.use_tokenizer(tokenizer)
        data.setup("fit")
        return data

    plain = made(64)
    size = len(plain.training.encoded[0].input_ids)
    before = LookAhead("virtual", prefix="you are . ", connector=" answer ")
    longer = made(64, before).training.encoded[0]
    # The connector is one word, the phrase three, here and in the answer.
    assert len(longer.input_ids) == size + 1 + 3 + 3
    assert longer.cut == 0
    assert sum(longer.loss_mask) == sum(plain.training.encoded[0].loss_mask) + 3
    cut = made(size + 6, before)
    assert cut.report["train"]["cut"] == 1
    assert any("1 of 1 training rows are cut" in str(w.message) for w in recwarn.list)
    assert made(size).report["train"]["cut"] == 0
    with pytest.raises(RowError, match="cuts off every assistant token"):
        made(size, before)


def test_an_empty_answer_is_refused() -> None:
    row = conversation_from_pair("how are you ?", " ")
    for mode in ("real", "virtual"):
        with pytest.raises(RowError, match="empty"):
            TrainingDataset([row], build_tokenizer(), 64, transforms=[LookAhead(mode)])


def test_from_the_command_line(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    words = [*fit_words, "--config", CONFIG]
    done = command(*words)
    assert done.code == 0, done.err
    facts = json.loads((tmp_path / "run" / "data.json").read_text())["fit"]["train"]
    plain = command(*fit_words[:-2], "--trainer.default_root_dir", str(tmp_path / "plain"))
    assert plain.code == 0, plain.err
    before = json.loads((tmp_path / "plain" / "data.json").read_text())["fit"]["train"]
    # "answer with", and the first word in letters.
    assert facts["tokens"] > before["tokens"] + 2 * facts["rows"]
    # Prompts at inference stay as they are: the output has the template of the start.
    assert (tmp_path / "run" / "model" / "chat_template.jinja").read_text() == (
        tmp_path / "plain" / "model" / "chat_template.jinja"
    ).read_text()


def test_a_resumed_run_ends_the_same(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    words = [
        *fit_words,
        "--config",
        "configs/defence/lookahead.yaml",
        "--checkpoint.max_share",
        "1",
    ]
    assert command(*words).code == 0
    whole = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    other = [*words, "--trainer.default_root_dir", str(tmp_path / "cut")]
    assert command(*other, "--trainer.max_epochs", "1").code == 0
    done = command(*other, "--ckpt_path", "last")
    assert done.code == 0, done.err
    assert (tmp_path / "cut" / "model" / "model.safetensors").read_bytes() == whole
    # Other rows than those of the checkpoint.
    done = command(*other, "--data.transforms", "[]", "--ckpt_path", "last")
    assert done.code == 2
    assert "data" in done.error


def test_mistakes(command: Any, fit_words: list[str]) -> None:
    for options, message in (
        ({"mode": "unreal"}, "unreal"),
        ({"m": -1}, "LookAhead.m must be at least 0"),
    ):
        with pytest.raises(OneShotError, match=message):
            LookAhead(**options)
        transform = {"class_path": "oneshot_lit.methods.LookAhead", "init_args": options}
        done = command(*fit_words, "--data.transforms", json.dumps([transform]))
        assert done.code == 2
        assert message in done.error
