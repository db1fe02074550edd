"""Own answers: batched by length, and in the order of their prompts."""

from __future__ import annotations

import random
from typing import Any

import pytest
from torch import Tensor

from oneshot_lit.methods import Decoding, LanguageModelModule, own_answers
from oneshot_lit.microworld.splits import load_split
from oneshot_lit.models.generation import generate_answers


def test_own_answers_are_batched_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    module = LanguageModelModule("checkpoints/small", decoding=Decoding(max_new_tokens=12))
    module.configure_model()
    module.eval()
    names = ("harmful_dev", "benign_dev", "reverse_dev", "sql_dev")
    prompts = [row.prompt for name in names for row in load_split(name)[:6]]
    random.Random(0).shuffle(prompts)
    alone = [own_answers.own_answers(module, module.model, [each], 1)[0] for each in prompts]
    assert len(set(alone)) > 8
    masks: list[Tensor] = []

    def watched(model: Any, tokenizer: Any, batch: dict[str, Tensor], **options: Any) -> list[str]:
        masks.append(batch["attention_mask"])
        return generate_answers(model, tokenizer, batch, **options)

    monkeypatch.setattr(own_answers, "generate_answers", watched)
    assert own_answers.own_answers(module, module.model, prompts, 4) == alone
    lengths = [int(size) for mask in masks for size in mask.sum(1)]
    assert len(set(lengths)) > 3
    assert lengths == sorted(lengths, reverse=True)
