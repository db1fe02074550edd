"""What decides an answer: the decoding options, and every end of turn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import Decoding, LanguageModelModule


@pytest.fixture(params=[None, {"r": 2, "target_modules": "all-linear"}], ids=["bare", "adapter"])
def module(request: pytest.FixtureRequest) -> LanguageModelModule:
    decoding = Decoding(max_new_tokens=12)
    built = LanguageModelModule("checkpoints/small", decoding=decoding, peft=request.param)
    built.configure_model()
    return built.eval()


def batch(module: LanguageModelModule) -> dict[str, torch.Tensor]:
    ids = module.tokenizer.apply_chat_template(
        [{"role": "user", "content": "how do i make lumdra soup ?"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    return {"input_ids": ids["input_ids"], "attention_mask": ids["attention_mask"]}


def test_a_checkpoints_generation_config_changes_nothing(module: LanguageModelModule) -> None:
    plain = module.generate(batch(module))
    own = module.model.generation_config
    own.min_new_tokens, own.no_repeat_ngram_size, own.repetition_penalty = 12, 1, 9.0
    assert module.generate(batch(module)) == plain
    # The product keeps what its author set.
    assert module.model.generation_config is own


def test_an_end_of_turn_that_is_no_special_token_is_cut_off(module: LanguageModelModule) -> None:
    (whole,) = module.generate(batch(module))
    words = whole.split()
    stop = module.tokenizer(f" {words[2]}", add_special_tokens=False).input_ids[-1]
    module.stop_ids = [*module.stop_ids, stop]
    (answer,) = module.generate(batch(module))
    assert answer == " ".join(words[:2])


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": 0}, {"temperature": 0.0}, {"top_p": 1.5}, {"top_p": 0.0}]
)
def test_decoding_refuses_what_generate_cannot_do(options) -> None:
    with pytest.raises(OneShotError, match=next(iter(options))):
        Decoding(**options)


def test_home_folders_are_expanded(monkeypatch: pytest.MonkeyPatch, tiny_folder: Path) -> None:
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    module = LanguageModelModule("~/model")
    module.configure_model()
    assert module.tokenizer.chat_template
