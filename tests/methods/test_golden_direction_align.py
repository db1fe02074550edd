"""DirectionAlign against numbers of the released class."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.posttuning.direction_steps import (
    add_gradients,
    candidates,
    default_end,
    first_layers,
    largest,
    mean_state,
)

GOLDEN = Path(__file__).with_name("golden") / "direction_align"
FACTS = json.loads((GOLDEN / "data.json").read_text())
DATA = np.load(GOLDEN / "data.npz")
END = FACTS["layer_end"]


def part(prefix: str, dtype: torch.dtype) -> dict[str, Any]:
    return {
        name.removeprefix(f"{prefix}."): torch.tensor(DATA[name]).to(dtype)
        for name in DATA
        if name.startswith(f"{prefix}.")
    }


def model_of(prefix: str, dtype: torch.dtype) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**FACTS["config"])).to(dtype)
    model.load_state_dict(part(prefix, dtype))
    return model.train()


def batches(name: str) -> list[dict[str, Any]]:
    return [
        {
            "input_ids": torch.tensor(DATA[f"{name}{n}.ids"]).long(),
            "attention_mask": torch.tensor(DATA[f"{name}{n}.att"]).long(),
        }
        for n in range(2)
    ]


class Run:
    """A fine-tuned model and the steps that are taken on it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.aligned, self.tuned = part("theta0", dtype), part("theta", dtype)
        self.model = model_of("theta", dtype)
        self.own = {n: p for n, p in self.model.named_parameters() if n in FACTS["candidates"]}
        with first_layers(model_of("theta0", dtype), END) as decoder:
            self.harmful = mean_state(decoder, batches("harm"))
        with first_layers(self.model, END) as decoder:
            self.benign = mean_state(decoder, batches("ben"))
        assert len(self.model.model.layers) == 3

    def gradients(self) -> dict[str, Any]:
        return {n: p.grad.clone() for n, p in self.own.items()}

    def back(self, name: str, direction: Any, target: Any, k: int, only: Any = None) -> Any:
        with first_layers(self.model, END) as decoder:
            add_gradients(decoder, batches(name), direction)
        grads = self.gradients()
        chosen = candidates(self.own, target, grads)
        if only is not None:
            chosen = {n: mask & only[n] for n, mask in chosen.items()}
            k = math.ceil(sum(int(m.sum()) for m in chosen.values()) * k / 100)
        mask = largest(chosen, grads, k)
        with torch.no_grad():
            for n, each in mask.items():
                self.own[n].copy_(torch.where(each, target[n], self.own[n]))
        return grads, mask


def same(got: dict[str, Any], prefix: str, exact: bool) -> None:
    for name, tensor in got.items():
        expected = DATA[f"{prefix}.{name}"]
        if exact:
            np.testing.assert_array_equal(tensor.numpy(), expected.astype(bool))
        else:
            np.testing.assert_allclose(tensor.detach().numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_two_steps(dtype: torch.dtype) -> None:
    run = Run(dtype)
    np.testing.assert_allclose(run.harmful, DATA["dir_harmful_theta0"], atol=1e-6)
    np.testing.assert_allclose(run.benign, DATA["dir_benign_theta"], atol=1e-6)
    for step in range(2):
        # Gradients add up over the steps, as in the release.
        grads, mask = run.back("harm", run.harmful, run.aligned, FACTS["k"])
        same(grads, f"grad_step{step}", exact=False)
        same(mask, f"mask_step{step}", exact=True)
        assert sum(int(m.sum()) for m in mask.values()) == FACTS["selected"][step]
    same(run.own, "after2", exact=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_with_rollback(dtype: torch.dtype) -> None:
    run = Run(dtype)
    _, mask = run.back("harm", run.harmful, run.aligned, FACTS["k"])
    run.model.zero_grad()
    percent = round(100 * FACTS["rollback_rate"])
    grads, undone = run.back("ben", run.benign, run.tuned, percent, only=mask)
    same(grads, "rollback_grad", exact=False)
    assert sum(int(m.sum()) for m in undone.values()) == FACTS["rollback_undone"]
    same(run.own, "after_rollback", exact=False)


def test_more_entries_than_there_are() -> None:
    run = Run(torch.float32)
    with pytest.raises(OneShotError, match="recovery_rate"):
        run.back("harm", run.harmful, run.aligned, 10**6)
    assert [default_end(n) for n in (32, 40, 28, 18, 64)] == [21, 26, 18, 12, 42]
