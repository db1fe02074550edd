"""The problem of a language model: its losses, its steps, and a choice whose answer is known."""

from __future__ import annotations

import math
from functools import partial
from statistics import median

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_llama import tiny_llama
from transformers import LlamaForCausalLM

from oneshot_lit.data.chat import Encoded
from oneshot_lit.methods.select.copies import OMEGA, THETA, SharedBase, TwoCopies, WholeModels
from oneshot_lit.methods.select.penalty import PenaltySettings, outer_step, top_m
from oneshot_lit.methods.select.reference import ReferenceRows, batches_of
from oneshot_lit.models.loss import labelled_logits, row_losses

CPU = torch.device("cpu")


def row(prompt: list[int], answer: list[int]) -> Encoded:
    return Encoded(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def adapters(model: LlamaForCausalLM) -> SharedBase:
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    shared = get_peft_model(model, config, adapter_name=THETA)
    shared.add_adapter(OMEGA, config)
    return SharedBase(shared)


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
    (found,) = rows.divergences(partial(logits, model))
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert rows.divergences(partial(logits, other))[0].item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", [adapters, WholeModels])
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
    assert f > given.objective()
    last = given.candidate_losses()
    assert torch.equal(last[1], after[1])
    assert not torch.equal(last[0], after[0])


@pytest.mark.parametrize("kind", [adapters, WholeModels])
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


@pytest.mark.parametrize("kind", [adapters, WholeModels])
def test_equal_descents_leave_no_gap(kind) -> None:
    given = problem(kind, tiny_llama(1), [row([1, 2], [9, 4])])
    given.upper = []
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    for _ in range(3):
        given.lower_step(weights)
        given.upper_step(weights, 1.0)
        theta, omega = given.candidate_losses()
        assert torch.equal(theta, omega)


def test_the_second_adapter_has_the_firsts_dtype() -> None:
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    shared = get_peft_model(tiny_llama(), config, adapter_name=THETA).to(torch.bfloat16)
    shared.add_adapter(OMEGA, config)
    copies = SharedBase(shared)
    assert {p.dtype for p in copies.parameters(OMEGA)} == {torch.bfloat16}


def test_a_state_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem(adapters, tiny_llama(1), [row([1, 2], [9, 4])])
    given.optimizers = {
        name: torch.optim.AdamW(given.copies.parameters(name)) for name in (THETA, OMEGA)
    }
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    given.lower_step(weights)
    given.upper_step(weights, 1.0)
    move, moved = torch.Tensor.to, []

    def moving(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        found = move(self, *args, **kwargs)
        moved.append(id(found))
        return found

    monkeypatch.setattr(torch.Tensor, "to", moving)
    state = given.state()
    for name in (THETA, OMEGA):
        kept = [v for each in state[name]["optimizer"]["state"].values() for v in each.values()]
        assert kept
        assert all(id(value) in moved for value in kept)
    monkeypatch.undo()
    before = given.candidate_losses()
    given.lower_step(weights)
    given.upper_step(weights, 1.0)
    given.restore(state)
    assert all(map(torch.equal, given.candidate_losses(), before))


def test_the_frozen_base_never_moves() -> None:
    given = problem(adapters, tiny_llama(1), [row([1, 2], [9, 4])])
    base = {
        name: p.clone() for name, p in given.copies.model.named_parameters() if "lora_" not in name
    }
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(3):
        given.lower_step(weights)
        given.upper_step(weights, 1.0)
    now = dict(given.copies.model.named_parameters())
    assert all(torch.equal(now[name], p) for name, p in base.items())


@pytest.mark.parametrize("kind", [adapters, WholeModels])
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
    assert top_m(logits, 1) == [wanted]
    assert records[-1].entropy < math.log(3) - 0.02
    # At this rate single steps may leap.
    assert median(record.f for record in records[20:]) < records[0].f
    assert given.forwards > given.backwards > 0


@pytest.mark.parametrize("kind", [adapters, WholeModels])
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
