"""Q-realign against numbers of the released code: the quantiser, and a whole run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from oneshot_lit.methods.posttuning.fake_quant import LINEARS, QuantisedLayer, fake_quant
from oneshot_lit.methods.posttuning.q_realign_run import (
    Prompt,
    QuantOptions,
    epochs_of,
    input_peaks,
    realign,
)

GOLDEN = Path(__file__).with_name("golden") / "q_realign"
FACTS = json.loads((GOLDEN / "data.json").read_text())
DATA = np.load(GOLDEN / "data.npz")


def array(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.tensor(DATA[name]).to(dtype)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_quantiser_and_its_gradients(bits: int, dtype: torch.dtype) -> None:
    w = array("q.W", dtype).requires_grad_()
    upper = torch.linspace(1, 4, 6, dtype=dtype).view(-1, 1).requires_grad_()
    lower = torch.linspace(4, 0.5, 6, dtype=dtype).view(-1, 1).requires_grad_()
    out = fake_quant(w, bits, upper, lower)
    (out * array("q.G", dtype)).sum().backward()
    atol = 1e-5 if dtype == torch.float32 else 1e-6
    pairs = {"out": out, "dup": upper.grad, "dlow": lower.grad, "dW": w.grad}
    for name, got in pairs.items():
        expected = array(f"q.W{bits}_{name}", dtype)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=atol)
    x = fake_quant(array("q.X", dtype), bits)
    torch.testing.assert_close(x, array(f"q.X{bits}_out", dtype), rtol=0, atol=atol)


def test_rows_without_a_range() -> None:
    zeros = fake_quant(torch.zeros(2, 4), 8)
    assert not zeros.any()
    constant = fake_quant(torch.full((2, 4), FACTS["const_row"]["value"]), 8)
    np.testing.assert_allclose(constant, FACTS["const_row"]["out"], atol=1e-6)
    # So does one with ends that are learned, as long as they are the same.
    ends = torch.full((2, 1), 4.0), torch.full((2, 1), -4.0)
    row = torch.full((2, 4), 0.37)
    assert (fake_quant(row, 8, ends[0], ends[0]) - row).abs().min() > 0.2
    assert (fake_quant(row, 8, *ends) - row).abs().max() < 0.01


def golden_model() -> LlamaForCausalLM:
    config = {k: v for k, v in FACTS["config"].items() if k != "seqlen"}
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))
    names = [name for name in DATA if name.startswith("m.")]
    model.load_state_dict({n.removeprefix("m."): array(n) for n in names})
    return model.eval().requires_grad_(False)


def prompts() -> list[Prompt]:
    return [
        Prompt(array(f"ids{n}", torch.long), array(f"att{n}", torch.long), bool(label))
        for n, label in enumerate(FACTS["labels"])
    ]


def test_a_whole_run() -> None:
    model, args = golden_model(), FACTS["args"]
    layers = range(len(model.model.layers))
    assert [epochs_of(n, len(layers), args["epochs"]) for n in layers] == args["epochs_per_layer"]
    prefix = "act.model.layers."
    peaks = [
        {n.removeprefix(f"{prefix}{i}."): array(n) for n in DATA if n.startswith(f"{prefix}{i}.")}
        for i in layers
    ]
    probes = [(array(f"probe{i}.w"), -0.2) for i in layers]
    options = QuantOptions(
        args["wbits"], args["abits"], args["epochs"], args["let_lr"], args["lwc_lr"], args["alpha"]
    )
    students: dict[int, QuantisedLayer] = {}
    losses: dict[int, list[float]] = {}
    realign(model, prompts(), probes, peaks, options, losses.__setitem__, students.__setitem__)
    logged = re.findall(r"layer (\d+) iter \d+ loss:([\d.]+)", "\n".join(FACTS["log"]))
    expected = [float(value) for _, value in logged]
    np.testing.assert_allclose([x for own in losses.values() for x in own], expected, atol=1e-4)
    for i, student in students.items():
        for key in ("qkv", "out", "fc1", "qkt"):
            got = student.scales[key].detach()
            np.testing.assert_allclose(got, DATA[f"omni.{i}.{key}_smooth_scale"], atol=1e-4)
        for (name, end), value in student.ranges.items():
            side = {"upper": "upbound", "lower": "lowbound"}[end]
            expected_range = DATA[f"omni.{i}.{name}.weight_quantizer.{side}_factor"]
            np.testing.assert_allclose(value.detach(), expected_range, atol=1e-4)
        for name in (*LINEARS, "input_layernorm", "post_attention_layernorm"):
            got = model.model.layers[i].get_submodule(name).weight
            np.testing.assert_allclose(got, DATA[f"quant.layers.{i}.{name}.weight"], atol=1e-4)


def test_peaks_of_the_inputs_leave_padding_out() -> None:
    model, rows = golden_model(), prompts()
    with_padding = input_peaks(model, rows)
    cut = [Prompt(p.ids[:, : p.last + 1], p.mask[:, : p.last + 1], p.harmful) for p in rows]
    for one, other in zip(with_padding, input_peaks(model, cut), strict=True):
        assert set(one) == set(LINEARS)
        for name, peak in one.items():
            torch.testing.assert_close(peak, other[name], rtol=1e-4, atol=1e-6)
