"""A training step that reads the beginning of all rows once: the same loss and gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.models import shared_prefix
from oneshot_lit.models.loss import IGNORE_INDEX
from oneshot_lit.models.shared_prefix import training_cache
from oneshot_lit.spectral.recorder import FactorRecorder


@pytest.fixture(autouse=True)
def _small_models_share_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix, "_LEAST_SAVED_WORK", 0)


def batch_of(rows: list[list[int]], answers: list[int]) -> dict[str, Tensor]:
    """Return a right-padded batch; the last tokens of each row are its answer."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    labels = torch.full_like(ids, IGNORE_INDEX)
    for n, (row, answer) in enumerate(zip(rows, answers, strict=True)):
        labels[n, len(row) - answer : len(row)] = ids[n, len(row) - answer : len(row)]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


START = [1, 9, 8, 7, 6, 5]
BATCHES = {
    "lengths": batch_of(
        [[*START, 20, 21, 22], [*START, 30, 31, 32, 33, 34], [*START, 40, 41]], [2, 3, 1]
    ),
    # The same row each time: its answer is shared, too, but must count in each row.
    "repeated": batch_of([[*START, 20, 21, 22, 23]] * 4, [3] * 4),
}


def module_of(folder: Path, **options: Any) -> LanguageModelModule:
    module = LanguageModelModule(str(folder), dtype="float64", **options)
    module.configure_model()
    return module.train()


def step(module: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    weights = {n: p for n, p in module.named_parameters() if p.requires_grad}
    loss = module.compute_loss(batch)
    return loss, dict(zip(weights, torch.autograd.grad(loss, [*weights.values()]), strict=True))


@pytest.mark.parametrize("name", list(BATCHES))
@pytest.mark.parametrize("peft", [None, {"r": 2, "target_modules": "all-linear"}])
def test_loss_and_gradients_are_the_same(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, peft: Any
) -> None:
    module, batch = module_of(tiny_folder, peft=peft), BATCHES[name]
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    cache = training_cache(module.model, batch)
    assert cache.get_seq_length() == len(START)
    loss, grads = step(module, batch)
    monkeypatch.setattr(shared_prefix, "_LEAST_SAVED_WORK", 1e18)
    assert training_cache(module.model, batch) is None
    plain, expected = step(module, batch)
    torch.testing.assert_close(loss, plain, atol=1e-8, rtol=1e-8)
    assert grads.keys() == expected.keys()
    # The norms of Llama compute in float32.
    for key, gradient in grads.items():
        torch.testing.assert_close(gradient, expected[key], atol=1e-8, rtol=1e-5)


def test_the_factors_of_the_gradients_are_the_same(tiny_folder: Path) -> None:
    module, batch = module_of(tiny_folder), BATCHES["lengths"]
    weights = {n: p for n, p in module.named_parameters() if n.endswith("proj.weight")}
    recorder = FactorRecorder(weights)
    recorder.attach(module.model)
    _, grads = step(module, batch)
    recorder.detach()
    for name, (right, left) in recorder.factors().items():
        torch.testing.assert_close(left.T @ right, grads[name], atol=1e-8, rtol=1e-5)


def test_what_cannot_be_shared(tiny_folder: Path, gpt2_folder: Path) -> None:
    batch, module = BATCHES["lengths"], module_of(tiny_folder)
    one = {key: value[:1] for key, value in batch.items()}
    assert training_cache(module.model, one) is None
    everywhere = {**batch, "labels": batch["input_ids"]}
    assert training_cache(module.model, everywhere) is None
    module.model.gradient_checkpointing_enable()
    assert training_cache(module.model, batch) is None
    # GPT-2 has dropout, which is off in eval mode alone.
    dropping = module_of(gpt2_folder)
    assert training_cache(dropping.model, batch) is None
    assert training_cache(dropping.model.eval(), batch).get_seq_length() == len(START)
    lora = module_of(
        tiny_folder, peft={"r": 2, "lora_dropout": 0.1, "target_modules": "all-linear"}
    )
    assert training_cache(lora.model, batch) is None


def test_a_forward_pass_of_its_own_is_used(tiny_folder: Path) -> None:
    class Own(LanguageModelModule):
        calls = 0

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(input_ids, attention_mask)

    module = Own(str(tiny_folder))
    module.configure_model()
    module.compute_loss(BATCHES["lengths"])
    assert module.calls == 1
