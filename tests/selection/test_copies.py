"""The problem of a language model: its losses, its steps, and a choice whose answer is known."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_llama import tiny_llama
from transformers import LlamaForCausalLM

from oneshot_lit.data.chat import Encoded
from oneshot_lit.methods.select.copies import TwoCopies
from oneshot_lit.methods.select.penalty import PenaltySettings, outer_step
from oneshot_lit.methods.select.reference import ReferenceRows, batches_of
from oneshot_lit.models.loss import labelled_logits, row_losses

CPU = torch.device("cpu")


def row(prompt: list[int], answer: list[int]) -> Encoded:
    return Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def adapter(model: LlamaForCausalLM) -> Any:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, config)


def whole(model: LlamaForCausalLM) -> Any:
    return model


POOL = [row([1, 2, 3], [10, 4]), row([1, 5], [11, 6, 4]), row([7, 2, 2, 1], [12, 4])]


def problem(kind, reference: LlamaForCausalLM, rows: list[Encoded]) -> TwoCopies:
    model = tiny_llama()

    def logits(batch):
        found = reference(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return labelled_logits(found.logits, batch["labels"])

    upper = ReferenceRows(batches_of(rows, 0, 2, CPU), logits)
    return TwoCopies(
        kind(model), batches_of(POOL, 0, 2, CPU), [upper], partial(torch.optim.SGD, lr=0.5)
    )


def test_losses_of_examples_are_those_of_each_alone() -> None:
    model = tiny_llama()
    for batch in batches_of(POOL, 0, 3, CPU):
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        losses = row_losses(output.logits, batch["labels"])
        for place, index in enumerate(batch["index"].tolist()):
            ids = torch.tensor([POOL[index].input_ids])
            labels = torch.where(torch.tensor([POOL[index].loss_mask]), ids, -100)
            expected = model(input_ids=ids, labels=labels).loss
            assert losses[place].item() == pytest.approx(expected.item(), rel=1e-5)


def test_divergence_is_torchs_own_mean() -> None:
    model, other = tiny_llama(), tiny_llama(1)
    (batch,) = batches_of(POOL, 0, 3, CPU)

    def logits(which, b):
        found = which(input_ids=b["input_ids"], attention_mask=b["attention_mask"]).logits
        return labelled_logits(found, b["labels"])

    rows = ReferenceRows([batch], partial(logits, other))
    p, q = (logits(which, batch).log_softmax(-1) for which in (other, model))
    expected = torch.nn.functional.kl_div(q, p, reduction="batchmean", log_target=True)
    (found,) = list(rows.divergences(partial(logits, model)))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    (none,) = list(rows.divergences(partial(logits, other)))
    assert none.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [adapter, whole])
def test_each_copy_moves_alone(kind) -> None:
    given = problem(kind, tiny_llama(1), [row([1, 2], [9, 4]), row([3], [8])])
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    before = given.candidate_losses()
    assert torch.equal(before[0], before[1])
    given.lower_step(weights)
    after = given.candidate_losses()
    assert torch.equal(after[0], before[0])
    assert weights @ after[1] < weights @ before[1]
    f = given.upper_step(weights, 0.0)
    assert f > given.upper_step(weights, 0.0)
    last = given.candidate_losses()
    assert torch.equal(last[1], after[1])
    assert not torch.equal(last[0], after[0])


@pytest.mark.parametrize("kind", [adapter, whole])
def test_omega_goes_to_theta_and_on_from_there(kind) -> None:
    given = problem(kind, tiny_llama(1), [row([1, 2], [9, 4])])
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    given.lower_step(weights)
    given.upper_step(weights, 1.0)
    theta, omega = given.candidate_losses()
    assert not torch.equal(theta, omega)
    given.follow()
    both = given.candidate_losses()
    assert torch.equal(both[0], theta)
    assert torch.equal(both[1], theta)
    given.lower_step(weights)
    theta_after, omega_after = given.candidate_losses()
    assert torch.equal(theta_after, theta)
    assert weights @ omega_after < weights @ theta


@pytest.mark.parametrize("kind", [adapter, whole])
def test_equal_descents_leave_no_gap(kind) -> None:
    given = problem(kind, tiny_llama(1), [row([1, 2], [9, 4])])
    given.upper = []
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for _ in range(3):
        given.lower_step(weights)
        given.upper_step(weights, 1.0)
        theta, omega = given.candidate_losses()
        assert torch.equal(theta, omega)


@pytest.mark.parametrize("kind", [adapter, whole])
def test_a_restored_state_goes_on_the_same(kind, tmp_path: Path) -> None:
    runs = [problem(kind, tiny_llama(1), [row([1, 2], [9, 4])]) for _ in range(2)]
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for given in runs:
        # An optimiser with a state.
        given.optimizers = [torch.optim.AdamW(given.weights) for _ in range(2)]
    for number in range(2):
        runs[0].lower_step(weights)
        runs[0].upper_step(weights, 1.0)
        if number == 0:
            torch.save(runs[0].state(), tmp_path / "state")
    runs[1].restore(torch.load(tmp_path / "state", weights_only=True))
    runs[1].lower_step(weights)
    runs[1].upper_step(weights, 1.0)
    assert runs[0].forwards == runs[1].forwards
    losses = [given.candidate_losses() for given in runs]
    assert all(map(torch.equal, *losses))


def test_the_frozen_base_never_moves() -> None:
    given = problem(adapter, tiny_llama(1), [row([1, 2], [9, 4])])
    model = given.model
    base = {name: p.clone() for name, p in model.named_parameters() if "lora_" not in name}
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(3):
        given.lower_step(weights)
        given.upper_step(weights, 1.0)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in base.items())


@pytest.mark.parametrize("kind", [adapter, whole])
@pytest.mark.parametrize("wanted", [0, 1, 2])
@pytest.mark.slow
def test_the_candidate_that_teaches_the_reference_is_found(kind, wanted: int) -> None:
    # The reference is the model trained on one candidate, so that one reaches it and no other.
    reference = tiny_llama()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.5)
    (batch,) = batches_of([POOL[wanted]], 0, 1, CPU)
    for _ in range(10):
        optimizer.zero_grad()
        output = reference(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        row_losses(output.logits, batch["labels"]).sum().backward()
        optimizer.step()
    given = problem(kind, reference, POOL)
    settings = PenaltySettings(steps=40, lower_steps=2, rate=3.0, gamma=0.2, last_gamma=2.0)
    logits = torch.zeros(3, dtype=torch.float64)
    records = []
    for number in range(settings.steps):
        logits, record = outer_step(given, logits, number, settings)
        records.append(record)
    assert int(logits.argmax()) == wanted
    assert records[-1].entropy < math.log(3) - 0.02
    # At this rate single steps may leap.
    assert median(record.f for record in records[20:]) < records[0].f
    assert given.forwards > given.backwards > 0


@pytest.mark.parametrize("kind", [adapter, whole])
def test_losses_are_compared_without_dropout(kind) -> None:
    reference, model = tiny_llama(1), tiny_llama()
    for module in (reference, model):
        module.config.attention_dropout = 0.5
        for layer in module.model.layers:
            layer.self_attn.attention_dropout = 0.5
    model.train()
    found = TwoCopies(
        kind(model), batches_of(POOL, 0, 2, CPU), [], partial(torch.optim.SGD, lr=0.1)
    )
    drawn = {
        float(row_losses(model(b["input_ids"]).logits, b["labels"]).sum())
        for b in found.pool
        for _ in range(3)
    }
    assert len(drawn) == 3 * len(found.pool)
    first, second = found.candidate_losses(), found.candidate_losses()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0], first[1])
    assert model.training
