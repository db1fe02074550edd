"""SEAL against numbers of its released code, and against plain loops in float64."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from oneshot_lit.data.chat import Encoded
from oneshot_lit.methods.select.seal_steps import (
    STARTS,
    Activation,
    largest,
    mixed_loss,
    overlap_with_low_losses,
    row_weights,
    rows_to_keep,
    selector_gradient,
    upper_weight,
)
from oneshot_lit.methods.select.seal_training import SealTraining
from oneshot_lit.models.loss import labelled_logits, row_losses

GOLDEN = Path(__file__).parent / "golden" / "seal"
NUMBERS = json.loads((GOLDEN / "data.json").read_text())
TENSORS = load_file(GOLDEN / "data.safetensors")
# upper weight at the start, its decay, and the activation.
RUNS: dict[str, tuple[float, float, Activation]] = {
    "softmax_ul1_dec.03": (1.0, 0.03, "softmax"),
    "softmax_ul.9_dec.1": (0.9, 0.1, "softmax"),
    "sigmoid_ul.9_dec.1": (0.9, 0.1, "sigmoid"),
}
BATCH, EPOCHS = 2, 3


def tiny_model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    start = {n.removeprefix("w0."): t for n, t in TENSORS.items() if n.startswith("w0.")}
    model.load_state_dict(start)
    return model


def rows_of(kind: str) -> list[Encoded]:
    ids, mask, prompts = (TENSORS[f"{kind}_{part}"] for part in ("ids", "mask", "prompt_len"))
    rows = []
    for row, own, prompt in zip(ids.tolist(), mask.sum(1).tolist(), prompts.tolist(), strict=True):
        rows.append(Encoded(row[:own], [place >= prompt for place in range(own)]))
    return rows


def training_of(model: Any, activation: Activation, **options: Any) -> SealTraining:
    def logits(batch: dict[str, Tensor]) -> Tensor:
        output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
        return labelled_logits(output.logits, batch["labels"])

    module = SimpleNamespace(
        model=model,
        optimizer=lambda weights: torch.optim.SGD(weights, lr=0.3),
        device=torch.device("cpu"),
        tokenizer=SimpleNamespace(pad_token_id=0),
        trainer=SimpleNamespace(global_rank=0, world_size=1),
        labelled_logits=logits,
    )
    return SealTraining(module, rows_of("user"), rows_of("safe"), activation, 0.05, **options)


@pytest.mark.parametrize("name", list(RUNS))
def test_the_released_run(name: str) -> None:
    start, decay, activation = RUNS[name]
    expected = NUMBERS["runs"][name]
    training = training_of(tiny_model(), activation)
    orders = TENSORS["orders"].tolist()
    step, means = 0, {"upper_loss_mean": 0.0, "loss_mean": 0.0}
    for epoch in range(EPOCHS):
        upper = upper_weight(start, decay, epoch)
        means = dict.fromkeys(means, 0.0)
        for place in range(0, 8, BATCH):
            safe, users = (order[place : place + BATCH] for order in orders[2 * epoch :][:2])
            facts = training.step(safe, users, upper)
            loss = upper * facts["safe_loss"] + (1 - upper) * facts["weighted_loss"]
            for key, value in (("upper_loss_mean", facts["safe_loss"]), ("loss_mean", loss)):
                means[key] = 0.95 * means[key] + 0.05 * value
            released = expected["per_step"][step]
            # A step of the first run multiplies rounding errors: float64 is 1.7e-5 from it.
            assert facts["safe_loss"] == pytest.approx(released["upper_loss"], abs=2e-5)
            for key, value in means.items():
                assert value == pytest.approx(released[key], abs=1e-5)
            torch.testing.assert_close(
                training.logits.detach(), torch.tensor(released["logits"]), atol=1e-5, rtol=0
            )
            step += 1
    assert step == len(expected["per_step"])
    assert upper == pytest.approx(expected["final_ul_weight"])
    for parameter, tensor in training.module.model.state_dict().items():
        torch.testing.assert_close(tensor, TENSORS[f"final[{name}].{parameter}"], atol=2e-5, rtol=0)
    weights = row_weights(training.logits.detach(), activation)
    torch.testing.assert_close(weights, torch.tensor(expected["final_weights"]), atol=1e-5, rtol=0)
    for topp in (0.8, 0.5):
        chosen = largest(training.logits.tolist(), rows_to_keep(topp, 8))
        assert sorted(chosen) == sorted(expected[f"topp{str(topp)[1:]}_indices"])


def test_rows_at_once_change_nothing() -> None:
    ends = []
    for rows_at_once in (64, 1):
        training = training_of(tiny_model().double(), "softmax", rows_at_once=rows_at_once)
        for place in range(0, 8, 3):
            some = list(range(place, min(8, place + 3)))
            training.step(some, some[::-1], 0.6)
        ends.append([*training.trained, training.logits])
    for one, other in zip(*ends, strict=True):
        # The norms and the attention of this model are computed in float32.
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_the_start_of_the_selector() -> None:
    for activation in ("softmax", "sigmoid"):
        released = NUMBERS[f"init_{activation}"]
        logits = torch.full((5,), STARTS[activation])
        torch.testing.assert_close(logits, torch.tensor(released["logits"]), atol=1e-7, rtol=0)
        torch.testing.assert_close(
            row_weights(logits, activation), torch.tensor(released["weights"]), atol=1e-6, rtol=0
        )


def test_the_loss_of_a_row() -> None:
    labels = TENSORS["batch_loss.labels"].long()
    losses = row_losses(TENSORS["batch_loss.logits"], labels)
    counts = (labels[:, 1:] != -100).sum(1)
    for row, (mean, total) in enumerate(
        zip(NUMBERS["batch_loss_mean"], NUMBERS["batch_loss_sum"], strict=True)
    ):
        assert float(losses[row] * counts[row]) == pytest.approx(total, abs=1e-5)
        if mean is None:
            # Where the release has NaN; such rows never reach this loss (see test_seal.py).
            assert counts[row] == 0
        else:
            assert float(losses[row]) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("seed", range(3))
def test_the_selectors_gradient_against_a_loop(activation: Activation, seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(7, dtype=torch.float64)
    rows, losses = [4, 0, 6], 3 * torch.rand(3, dtype=torch.float64)
    total = sum(math.exp(x) for x in logits.tolist())
    p = [7 * math.exp(x) / total for x in logits.tolist()]
    sums = sum(p[row] * loss for row, loss in zip(rows, losses.tolist(), strict=True))
    expected = []
    for j, x in enumerate(logits.tolist()):
        own = sum(loss for row, loss in zip(rows, losses.tolist(), strict=True) if row == j)
        if activation == "softmax":
            expected.append(p[j] * (own - sums / 7) / 3)
        else:
            s = 1 / (1 + math.exp(-x))
            expected.append(2 * s * (1 - s) * own / 3)
    gradient = selector_gradient(logits, rows, losses, activation)
    torch.testing.assert_close(gradient, torch.tensor(expected).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, torch.tensor(expected, dtype=torch.float64))


def test_the_models_loss_against_a_loop() -> None:
    torch.manual_seed(0)
    safe, user, weights = (torch.rand(n, dtype=torch.float64) for n in (4, 3, 3))
    weights.requires_grad_()
    products = [float(w.detach() * loss) for w, loss in zip(weights, user, strict=True)]
    expected = 0.7 * sum(safe.tolist()) / 4 + 0.3 * sum(products) / 3
    loss = mixed_loss(safe, user.requires_grad_(), weights, 0.7)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    loss.backward()
    # No gradient flows into the weights.
    assert weights.grad is None
    torch.testing.assert_close(user.grad, 0.3 * weights.detach() / 3)


def test_a_resumed_training_takes_the_same_steps(tmp_path: Path) -> None:
    whole = training_of(tiny_model(), "softmax", max_norm=1.0, selector_max_norm=10.0)
    whole.step([0, 1], [2, 3], 0.5)
    torch.save(whole.state(), file := tmp_path / "state.pt")
    state = torch.load(file, weights_only=True)
    whole.step([2, 3], [4, 5], 0.5)
    resumed = training_of(tiny_model(), "softmax", max_norm=1.0, selector_max_norm=10.0)
    resumed.restore(state)
    resumed.step([2, 3], [4, 5], 0.5)
    for own, other in zip(
        [*whole.trained, whole.logits], [*resumed.trained, resumed.logits], strict=True
    ):
        assert torch.equal(own, other)


def test_choices_and_overlaps() -> None:
    assert largest([0.1, 0.3, 0.3, 0.2], 2) == [1, 2]
    # As floats are: 0.29 * 100 is below 29.
    assert rows_to_keep(0.29, 100) == 28
    assert rows_to_keep(0.8, 500) == 400
    # The two lowest losses are those of rows 3 and 1.
    assert overlap_with_low_losses([1, 2], [0.9, 0.2, 0.5, 0.1]) == 0.5
