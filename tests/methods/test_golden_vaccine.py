"""Vaccine against numbers of its released training step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_llama import batch_of, fit, golden, part, require_close, tiny_llama
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import Vaccine
from oneshot_lit.methods.alignment.vaccine import perturbations, squared_norm
from oneshot_lit.models.hidden_states import chosen_modules, hidden_gradients, perturbed
from oneshot_lit.models.loss import next_token_loss

DATA, FACTS = golden("vaccine")
FIRST = batch_of(DATA["ids"], DATA["labels"], DATA["attention_mask"])
SECOND = batch_of(DATA["ids2"], DATA["labels2"])


def sgd(ps: Any) -> Any:
    return torch.optim.SGD(ps, lr=0.1)


class EachBatchAlike(Vaccine):
    """The mean of the batches' means, as in the golden numbers."""

    def loss_weight(self, batch: dict[str, Tensor]) -> Tensor:
        return torch.tensor(1.0)


@pytest.mark.parametrize("rho", [2.0, 0.1])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step(tmp_path: Path, rho: float, checkpointing: bool) -> None:
    model = tiny_llama(part(DATA, "w."))
    module = Vaccine("tiny", rho=rho, optimizer=sgd, gradient_checkpointing=checkpointing)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    steps = fit(module, model, [FIRST], tmp_path)
    require_close(steps.gradients, part(DATA, f"grad_rho{rho}."), 1e-5)
    loss = FACTS[f"perturbed_loss_rho{rho}"]
    assert steps.logged[0]["train/loss"] == pytest.approx(loss, abs=1e-5)
    # Nothing is left behind.
    assert not any(layer.self_attn._forward_hooks for layer in model.model.layers)


@pytest.mark.parametrize("rho", [2.0, 0.1])
def test_perturbations(rho: float) -> None:
    model = tiny_llama(part(DATA, "w."))
    blocks = chosen_modules(model, "*.self_attn")

    def loss() -> Tensor:
        given = {k: v for k, v in FIRST.items() if k in ("input_ids", "attention_mask")}
        return next_token_loss(model(**given).logits, FIRST["labels"])

    gradients = hidden_gradients(blocks, loss)
    norm = squared_norm(gradients).sqrt()
    deltas = perturbations(gradients, norm, rho)
    for number, name in enumerate(blocks):
        wanted = DATA[f"attn_output_grad.layer{number}"]
        torch.testing.assert_close(gradients[name], wanted, atol=1e-6, rtol=0)
        wanted = DATA[f"eps_rho{rho}.layer{number}"]
        torch.testing.assert_close(deltas[name], wanted, atol=1e-5, rtol=0)
    total = float(squared_norm(deltas).sqrt())
    assert total == pytest.approx(FACTS[f"eps_total_norm_rho{rho}"], abs=1e-5)
    assert float(loss()) == pytest.approx(FACTS["clean_loss"], abs=1e-5)
    # A model without a gradient stays where it is.
    assert squared_norm(perturbations({"a": torch.zeros(2, 3)}, torch.zeros(()), rho)) == 0


def test_accumulated_batches_all_count(tmp_path: Path) -> None:
    model = tiny_llama(part(DATA, "w."))
    module = EachBatchAlike("tiny", optimizer=sgd)
    steps = fit(module, model, [FIRST, SECOND], tmp_path, accumulate_grad_batches=2)
    require_close(steps.gradients, part(DATA, "grad_accum2_own."), 1e-5)


def test_rho_of_zero_is_plain_fine_tuning(tmp_path: Path) -> None:
    model = tiny_llama(part(DATA, "w."))
    steps = fit(Vaccine("tiny", rho=0.0, optimizer=sgd), model, [FIRST], tmp_path)
    require_close(steps.gradients, part(DATA, "grad_clean."), 1e-5)
    assert steps.logged[0]["train/loss"] == pytest.approx(FACTS["clean_loss"], abs=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_random_perturbations(tmp_path: Path, checkpointing: bool) -> None:
    """One pass, with normal numbers of standard deviation sqrt(rho) at every block."""
    model = tiny_llama(part(DATA, "w."))
    blocks = chosen_modules(model, "*.self_attn")
    torch.manual_seed(3)
    deltas = {name: 4.0**0.5 * torch.randn(3, 7, 8) for name in blocks}
    with perturbed(blocks, deltas):
        logits = model(FIRST["input_ids"], attention_mask=FIRST["attention_mask"]).logits
    loss = next_token_loss(logits, FIRST["labels"])
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    module = Vaccine(
        "tiny", rho=4.0, random=True, optimizer=sgd, gradient_checkpointing=checkpointing
    )
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    module.on_train_start = lambda: torch.manual_seed(3)  # type: ignore[method-assign]
    steps = fit(module, model, [FIRST], tmp_path)
    require_close(steps.gradients, wanted, 1e-6)
    assert steps.logged[0]["train/loss"] == pytest.approx(float(loss), abs=1e-6)


def test_shared_beginnings_are_read_in_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """A beginning that is read once would have one perturbation for all rows."""
    from oneshot_lit.models import shared_prefix

    monkeypatch.setattr(shared_prefix, "_LEAST_SAVED_WORK", 0)
    ids = torch.randint(12, (4, 7), generator=torch.Generator().manual_seed(0))
    ids[:, :4] = ids[:1, :4]
    labels = torch.where(torch.arange(7) < 5, -100, ids)
    module = Vaccine("tiny", optimizer=sgd)
    module.model = tiny_llama(part(DATA, "w.")).train()
    shared = module.compute_loss(batch_of(ids, labels))
    monkeypatch.setattr(shared_prefix, "_LEAST_SAVED_WORK", 1e30)
    torch.testing.assert_close(module.compute_loss(batch_of(ids, labels)), shared)


def test_mistakes() -> None:
    with pytest.raises(OneShotError, match=r"model\.rho"):
        Vaccine("tiny", rho=-1.0)
    module = Vaccine("tiny", attention_blocks="*.attn")
    module.model = tiny_llama(part(DATA, "w."))
    with pytest.raises(OneShotError, match=r"matches '\*\.attn'"):
        module.compute_loss(FIRST)
