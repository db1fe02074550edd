"""BOS at every turn, and tokens that the model does not embed but nothing uses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_shapes import TURNS, asked, chat, learned, model_folder, tokenizer_of
from lightning.pytorch import Callback

from oneshot_lit.data import Inline, PromptSet, SafetyDataModule
from oneshot_lit.data.chat import check_tokenizer, encode_conversation
from oneshot_lit.errors import OneShotError, RowError
from oneshot_lit.methods import Decoding, HarmfulFineTuningModule
from oneshot_lit.models.chat_format import ChatOptions, set_chat_options, stop_token_ids
from quiet_trainer import quiet_trainer


def test_a_bos_that_opens_every_turn_is_taken() -> None:
    tokenizer = tokenizer_of(TURNS)
    tokenizer.bos_token = "<|start|>"
    check_tokenizer(tokenizer, "models/mine")
    row = chat("bread ?", "mix flour", "and then ?", "bake it .", system="be kind")
    assert encode_conversation(tokenizer, row).input_ids.count(tokenizer.bos_token_id) == 5
    assert learned(tokenizer, row) == ["mix flour<|end|>", "bake it .<|end|>"]
    tokenizer.bos_token = "<|sep|>"
    tokenizer.chat_template = TURNS.replace("+ '<|end|>\n'", "+ '<|sep|><|end|>\n'")
    check_tokenizer(tokenizer, "models/mine")


@pytest.mark.parametrize("before", ["<|start|>", "{{ bos_token }}"])
def test_two_bos_at_the_start_are_still_refused(before: str) -> None:
    tokenizer = tokenizer_of(before + TURNS)
    tokenizer.bos_token = "<|start|>"
    for call in (
        lambda: check_tokenizer(tokenizer, "models/mine"),
        lambda: encode_conversation(tokenizer, chat("bread ?", "mix")),
        lambda: asked(tokenizer, chat("bread ?")),
    ):
        with pytest.raises(OneShotError, match="second BOS token"):
            call()


def with_more_tokens() -> Any:
    tokenizer = tokenizer_of(TURNS)
    tokenizer.add_tokens(["<image>", "<far>"])
    return tokenizer


def turns(text: str, answer: str = "mix flour") -> list[dict[str, str]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]


def fitted(folder: Path, root: Path, row: list[dict[str, str]], prompt: str, **options: Any) -> Any:
    module = HarmfulFineTuningModule(str(folder), decoding=Decoding(max_new_tokens=3), **options)
    prompts = PromptSet(Inline([turns(prompt)]), "task")
    data = SafetyDataModule(train=Inline([row]), val_sets={"mine": prompts})
    quiet_trainer(root, Callback(), max_epochs=1).fit(module, data)
    return module


def test_only_tokens_in_use_must_be_embedded(tmp_path: Path) -> None:
    tokenizer = with_more_tokens()
    folder = model_folder(tmp_path / "model", tokenizer, rows=len(tokenizer) - 2)
    module = fitted(folder, tmp_path, turns("bread ?"), "bread ?")
    assert module.scores["mine/exact_match"] == 0
    number = len(tokenizer) - 2
    embedded = f"the token '<image>' has the id {number}, and the model embeds only {number} tokens"
    for row, prompt, place in (
        (turns("<image> bread ?"), "bread ?", "inline row 1"),
        (turns("bread ?", "<image>"), "bread ?", "inline row 1"),
        (turns("bread ?"), "<image> ?", "inline row 1"),
    ):
        with pytest.raises(RowError, match=f"{place}: holds a token .* not embed: {embedded}"):
            fitted(folder, tmp_path, row, prompt)
    with pytest.raises(OneShotError, match=r"model.stop_tokens: the token '<far>' has the id"):
        fitted(folder, tmp_path, turns("bread ?"), "bread ?", stop_tokens=["<far>"])


def test_padding_and_ends_must_be_embedded(tmp_path: Path) -> None:
    tokenizer = with_more_tokens()
    rows = len(tokenizer) - 2
    folder = model_folder(tmp_path / "model", tokenizer, rows)
    tokenizer.pad_token = "<far>"
    tokenizer.save_pretrained(folder)
    with pytest.raises(OneShotError, match="padding: the token '<far>' has the id"):
        fitted(folder, tmp_path, turns("bread ?"), "bread ?")
    tokenizer = with_more_tokens()
    tokenizer.eos_token = "<far>"
    set_chat_options(tokenizer, ChatOptions(embedded=rows), "mine")
    # The model never writes it, and has another end.
    assert stop_token_ids(tokenizer) == [tokenizer.convert_tokens_to_ids("<|end|>")]
    tokenizer.chat_template = TURNS.replace("<|end|>", "<far>")
    with pytest.raises(OneShotError, match="chat template: the token '<far>' has the id"):
        stop_token_ids(tokenizer)
