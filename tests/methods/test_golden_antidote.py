"""Antidote against numbers of the released functions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from oneshot_lit.methods.posttuning.antidote import InputEnergy, harmful_entries

GOLDEN = Path(__file__).with_name("golden") / "antidote"
FACTS = json.loads((GOLDEN / "data.json").read_text())
DATA, BASE = np.load(GOLDEN / "data.npz"), np.load(GOLDEN / "base.npz")


def base_model(dtype: torch.dtype) -> LlamaForCausalLM:
    model = LlamaForCausalLM(LlamaConfig(**FACTS["config"]))
    model.load_state_dict({n.removeprefix("base."): torch.tensor(BASE[n]) for n in BASE})
    return model.to(dtype).eval()


def energies(model: Any, modules: dict[str, Any], batched: bool = False) -> dict[str, InputEnergy]:
    """Return the energies of the inputs of modules over the golden sequences."""
    sums = {name: InputEnergy(m.in_features, torch.float64) for name, m in modules.items()}
    rows = [torch.tensor(DATA[f"ids{n}"]).long().view(1, -1) for n in range(6)]
    mask: Any = None

    def hook(name: str) -> Any:
        return lambda module, args: sums[name].add(args[0], mask)

    hooks = [m.register_forward_pre_hook(hook(name)) for name, m in modules.items()]
    if batched:
        longest = max(row.shape[1] for row in rows)
        pad = [torch.nn.functional.pad(row, (0, longest - row.shape[1])) for row in rows]
        lengths = torch.tensor([[row.shape[1]] for row in rows])
        mask = (torch.arange(longest)[None] < lengths).long()
        model(input_ids=torch.cat(pad), attention_mask=mask)
    else:
        for row in rows:
            mask = torch.ones_like(row)
            model(input_ids=row)
    for each in hooks:
        each.remove()
    return sums


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batched", [False, True])
@torch.no_grad()
def test_pairs(dtype: torch.dtype, batched: bool) -> None:
    lora = FACTS["lora"]
    options = {key: lora[key] for key in ("r", "lora_alpha", "target_modules")}
    model = get_peft_model(base_model(dtype), LoraConfig(lora_dropout=0.0, **options))
    modules = {}
    for name in FACTS["modules"]:
        module = model.get_submodule(f"base_model.model.model.{name}.default")
        module.weight.copy_(torch.tensor(DATA[f"{name}.W"]))
        modules[name] = module
    for name, energy in energies(model, modules, batched).items():
        expected = torch.tensor(DATA[f"{name}.score_act"])
        torch.testing.assert_close(energy.mean.float(), expected, rtol=1e-5, atol=1e-12)
        gone = harmful_entries(modules[name].weight, energy.mean, lora["dense_ratio"])
        np.testing.assert_array_equal(gone, DATA[f"{name}.mask"].astype(bool))
        np.testing.assert_allclose(modules[name].weight * ~gone, DATA[f"{name}.W_out"], atol=1e-7)


@torch.no_grad()
def test_whole_weights() -> None:
    model = base_model(torch.float64)
    names = [n.removesuffix(".W") for n in DATA if n.startswith("full.") and n.endswith(".W")]
    modules = {
        name: model.get_submodule(name.removeprefix("full.").removesuffix(".weight"))
        for name in names
    }
    ratio = FACTS["full"]["dense_ratio"]
    assert modules
    for name, energy in energies(model, modules).items():
        np.testing.assert_allclose(energy.mean, DATA[f"{name}.score_act"], rtol=1e-5)
        gone = harmful_entries(modules[name].weight, energy.mean, ratio)
        np.testing.assert_array_equal(gone, DATA[f"{name}.mask"].astype(bool))


def test_sums_over_sequences_of_several_lengths() -> None:
    energy = InputEnergy(5)
    for n in range(3):
        x = torch.tensor(DATA[f"stat.x{n}"])
        energy.add(x, torch.ones(x.shape[:2]))
    np.testing.assert_allclose(energy.mean, DATA["stat.scaler_row"], rtol=1e-5)


def test_edges() -> None:
    name = "layers.0.self_attn.q_proj.lora_A"
    gone = harmful_entries(torch.tensor(DATA[f"{name}.W"]), None, 0.2)
    np.testing.assert_array_equal(gone, DATA[f"magnitude_mode.{name}.mask"].astype(bool))
    # A row of zeros loses its last columns; a share that would keep a fraction rounds down.
    zeros = harmful_entries(torch.zeros(1, 6), torch.ones(6), 0.2)
    np.testing.assert_array_equal(zeros[0], np.array(FACTS["zero_row_mask"], dtype=bool))
    assert harmful_entries(torch.ones(1, 5), None, 0.8).sum() == 5
    assert harmful_entries(torch.ones(1, 4096), None, 1e-5).sum() == 1
