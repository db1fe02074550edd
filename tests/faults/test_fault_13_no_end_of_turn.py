"""Templates whose turns end in words or not at all: a warning before, and a count after."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from chat_shapes import NO_END, TEXT_END, TURNS, chat, model_folder, tokenizer_of
from lightning.pytorch import Callback

from oneshot_lit.callbacks import MetricsWriter
from oneshot_lit.data import Inline, PromptSet, SafetyDataModule
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.methods import Decoding, HarmfulFineTuningModule
from oneshot_lit.models.chat_format import end_of_turn_warning, stop_token_ids
from oneshot_lit.models.generation import answer_texts
from quiet_trainer import quiet_trainer

ROW = [{"role": "user", "content": "bread ?"}, {"role": "assistant", "content": "mix flour"}]


@pytest.mark.parametrize(
    ("template", "part"),
    [
        (TURNS, None),
        (NO_END, "writes no end of turn"),
        (TEXT_END, r"ends a turn with '\(over\)', which is no special token"),
        (TURNS.replace("<|end|>", "<|im_end|>"), r"ends a turn with '<\|im_end\|>', which is no"),
    ],
)
def test_a_template_without_an_end_token_is_named_before(
    template: str, part: str | None, tmp_path: Path
) -> None:
    tokenizer = tokenizer_of(template)
    if part is None:
        assert end_of_turn_warning(tokenizer, stop_token_ids(tokenizer)) is None
        return
    module = HarmfulFineTuningModule(str(model_folder(tmp_path / "model", tokenizer)))
    with pytest.warns(UserWarning, match=part):
        module.configure_model()


@pytest.mark.parametrize(
    ("template", "cut", "right"), [(TURNS, 0, 1.0), (TEXT_END, 0, 1.0), (NO_END, 3, 0.0)]
)
def test_answers_cut_at_the_limit_are_counted(
    template: str, cut: int, right: float, tmp_path: Path
) -> None:
    module = HarmfulFineTuningModule(
        str(model_folder(tmp_path / "model", tokenizer_of(template))),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
    )
    prompts = {"mine": PromptSet(Inline([ROW] * 3), "task")}
    data = SafetyDataModule(
        train=Inline([ROW] * 4), test_sets=prompts, batch_size=4, eval_batch_size=2
    )
    quiet_trainer(tmp_path, Callback(), max_epochs=30).fit(module, data)
    lengths = []
    generate = module.model.generate
    module.model.generate = lambda **options: lengths.append(generate(**options)) or lengths[-1]
    root = tmp_path / "test"
    module.decoding = Decoding(max_new_tokens=16)
    quiet_trainer(root, MetricsWriter()).test(module, data, verbose=False)
    content = json.loads((root / "metrics.json").read_text())
    assert content["cut_outputs"] == {"mine": cut}
    assert content["metrics"]["mine/exact_match"] == right
    # An end in words stops the generation, too.
    prompt = len(
        encode_conversation(module.tokenizer, chat("bread ?"), for_generation=True).input_ids
    )
    assert (max(getattr(each, "sequences", each).shape[1] for each in lengths) - prompt == 16) == (
        template == NO_END
    )


def test_answers_of_vllm_are_counted_by_their_tokens() -> None:
    """It gives the token that stopped it, or as many tokens as it may write."""
    for template, end in ((TURNS, "<|end|>"), (TEXT_END, " (over)")):
        tokenizer = tokenizer_of(template)
        whole, cut = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (f"mix flour{end}", "mix flour mix flour and salt")
        )
        stops = stop_token_ids(tokenizer)
        size = max(len(whole), len(cut))
        for tokens, text in ((whole, "mix flour"), ((cut * 9)[:size], None)):
            tokens = tokens + [tokens[0]] * (0 if end == "<|end|>" else size - len(tokens))
            (found,) = answer_texts(tokenizer, [tokens], stop_ids=stops, max_new_tokens=size)
            assert found.cut == (text is None)
            assert text is None or found == text
