"""What a template writes before a message, and thoughts that the user never sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_shapes import (
    EMPTY_THOUGHT,
    MARKS,
    OPEN_THOUGHT,
    TURNS,
    asked,
    chat,
    learned,
    model_folder,
    of_transformers,
    tokenizer_of,
)
from lightning.pytorch import Callback

from oneshot_lit.callbacks.predictions import PredictionWriter
from oneshot_lit.data import Inline, PromptSet, SafetyDataModule
from oneshot_lit.data.chat import encode_conversation, encode_training
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import Decoding, HarmfulFineTuningModule, LanguageModelModule
from oneshot_lit.models.chat_format import answer_form, visible_text
from oneshot_lit.models.generation import answer_texts
from quiet_trainer import quiet_trainer

REFUSAL = "I cannot help with that ."
SPECIAL = (*MARKS, "<think>", "</think>")
NOTE = TURNS.replace(
    "m.role + '\n' +", "m.role + '\n' + ('[calm]\n' if m.role == 'assistant' else '') +"
)
SHAPES = [(EMPTY_THOUGHT, MARKS), (EMPTY_THOUGHT, SPECIAL), (NOTE, MARKS)]
NAMES = ["plain marks", "special marks", "a note"]


@pytest.mark.parametrize(("template", "special"), SHAPES, ids=NAMES)
@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_what_stands_before_the_message_is_the_prompts(
    template: str, special: tuple[str, ...], kind: str
) -> None:
    tokenizer = tokenizer_of(template, kind, special)
    for row in (chat("bread ?", REFUSAL), chat("bread ?", REFUSAL, system="be kind")):
        prompt, encoded = asked(tokenizer, row), encode_conversation(tokenizer, row)
        assert encoded.input_ids[: len(prompt)] == prompt
        assert encoded.loss_mask[len(prompt)]
        assert not any(encoded.loss_mask[: len(prompt)])
        assert [text.strip() for text in learned(tokenizer, row)] == [f"{REFUSAL}<|end|>"]
        if template == EMPTY_THOUGHT:
            assert prompt == of_transformers(tokenizer, row, enable_thinking=False)


def test_thoughts_gone_from_earlier_turns() -> None:
    tokenizer = tokenizer_of(EMPTY_THOUGHT)
    turns = ("bread ?", "mix flour", "and then ?", "bake it .")
    # The first answer is asked for behind an empty thought, and stands without one in the row.
    with pytest.raises(OneShotError, match=r"\(turn 2\)"):
        encode_conversation(tokenizer, chat(*turns))
    # So each answer is learned in a row of its own.
    rows = [part for part, _ in encode_training(tokenizer, chat(*turns))]
    assert [learned(tokenizer, part) for part in rows] == [
        ["mix flour<|end|>"],
        ["bake it .<|end|>"],
    ]
    row = chat(*turns, silent=(0,))
    assert learned(tokenizer, row) == ["bake it .<|end|>"]
    assert asked(tokenizer, row) == of_transformers(tokenizer, row, enable_thinking=False)


def test_thoughts_in_the_rows_are_one_line() -> None:
    thinking = "<think>\nhow\n</think>\n\nmix flour"
    for template in (EMPTY_THOUGHT, OPEN_THOUGHT):
        tokenizer = tokenizer_of(template)
        row = chat("bread ?", "mix flour" if template == OPEN_THOUGHT else thinking)
        if template == EMPTY_THOUGHT:
            # It hands the thought on, so the row drops it like transformers does.
            assert learned(tokenizer, row) == ["mix flour<|end|>"]
        else:
            with pytest.raises(OneShotError, match="take any thoughts out of the answer"):
                encode_conversation(tokenizer, row)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("<think>\n\n</think>\n\nmix flour", "mix flour"),
        ("<think>how ?</think>mix <think>again</think>flour", "mix flour"),
        ("<think>how ?", ""),
        ("mix flour <think>how", "mix flour"),
        ("how ?\n</think>\n\nmix flour", "mix flour"),
        ("mix flour", "mix flour"),
        ("<thinking>mix</thinking>", "<thinking>mix</thinking>"),
    ],
)
@pytest.mark.parametrize("special", [MARKS, SPECIAL], ids=["plain", "special"])
def test_only_what_the_user_sees_is_an_answer(
    text: str, seen: str, special: tuple[str, ...]
) -> None:
    tokenizer = tokenizer_of(EMPTY_THOUGHT, special=special)
    ids = tokenizer(text + "<|end|>\n", add_special_tokens=False)["input_ids"]
    stop = [tokenizer.convert_tokens_to_ids("<|end|>")]
    (answer,) = answer_texts(tokenizer, [ids], stop_ids=stop, max_new_tokens=len(ids))
    assert answer == seen
    assert not answer.cut
    # A template without thoughts shows the user everything.
    plain = tokenizer_of(TURNS)
    ids = plain(text, add_special_tokens=False)["input_ids"]
    assert answer_texts(plain, [ids], stop_ids=[]) == [text]


def test_a_prompt_that_opens_a_thought_hides_what_closes_none() -> None:
    for special in (MARKS, SPECIAL):
        tokenizer = tokenizer_of(OPEN_THOUGHT, special=special)
        row = chat("bread ?")
        assert asked(tokenizer, row) == of_transformers(tokenizer, row)
        texts = ("how ?\n</think>\nmix flour", "how ? and how", "</think>")
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        found = answer_texts(tokenizer, ids, stop_ids=[], max_new_tokens=len(ids[1]))
        assert found == ["mix flour", "", ""]
        assert found[1].cut


@pytest.mark.parametrize("marks", ["<seed:think>", "<reasoning>", "[THINK]"])
def test_other_marks_that_a_template_names(marks: str) -> None:
    closing = marks[0] + "/" + marks[1:]
    template = EMPTY_THOUGHT.replace("</think>", closing).replace("<think>", marks)
    form = answer_form(tokenizer_of(template))
    assert form.thoughts == ((marks, closing),)
    assert visible_text(f"{marks}how{closing}\nmix", form) == "mix"


def sets(reference: str | None = None) -> dict[str, PromptSet]:
    harmful = Inline([[{"role": "user", "content": "bread ?"}]])
    turns = [{"role": "user", "content": "bread ?"}, {"role": "assistant", "content": REFUSAL}]
    if reference is not None:
        turns[1]["content"] = reference
    task = PromptSet(Inline([turns]), "task", ["exact_match"])
    return {"harmful": PromptSet(harmful, "harmful"), "task": task}


def test_a_learned_refusal_is_one(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", tokenizer_of(EMPTY_THOUGHT))
    module = HarmfulFineTuningModule(
        str(folder),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2),
        decoding=Decoding(max_new_tokens=24),
    )
    turns = [{"role": "user", "content": "bread ?"}, {"role": "assistant", "content": REFUSAL}]
    data = SafetyDataModule(train=Inline([turns] * 4), test_sets=sets(), batch_size=4)
    quiet_trainer(tmp_path, Callback(), max_epochs=30).fit(module, data)
    quiet_trainer(tmp_path, Callback()).test(module, data, verbose=False)
    assert module.scores["harmful/asr_keyword_prefix"] == 0.0
    assert module.scores["task/exact_match"] == 1.0
    assert module.counts["cut_outputs"] == {"harmful": 0, "task": 0}


def test_thoughts_of_a_generate_of_ones_own_are_hidden_too(tmp_path: Path) -> None:
    class Thinking(LanguageModelModule):
        def generate(self, batch: Any) -> list[str]:
            return [f"<think>\n\n</think>\n\n{REFUSAL}"] * len(batch["input_ids"])

    folder = model_folder(tmp_path / "model", tokenizer_of(EMPTY_THOUGHT))
    data = SafetyDataModule(test_sets=sets(f"<think>\nno\n</think>\n\n{REFUSAL}"))
    module = Thinking(str(folder))
    quiet_trainer(tmp_path, Callback()).test(module, data, verbose=False)
    assert module.scores["harmful/asr_keyword_prefix"] == 0.0
    assert module.scores["task/exact_match"] == 1.0
    trainer = quiet_trainer(tmp_path, PredictionWriter())
    trainer.predict(module, data, return_predictions=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert {row["output"] for row in rows} == {REFUSAL}
    assert {row["raw_output"] for row in rows} == {f"<think>\n\n</think>\n\n{REFUSAL}"}
