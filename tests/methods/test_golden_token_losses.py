"""ConstrainedSFT, STAR-DSS and TOSS against numbers of the released code, and plain loops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from oneshot_lit.methods.finetuning.constrained_sft import (
    Strength,
    constrained_weights,
    softplus_losses,
    token_betas,
)
from oneshot_lit.methods.finetuning.star_dss import (
    chunk_weights,
    kl_estimates,
    mean_safety,
    prefix_word_counts,
    probability_safe,
    row_weights,
    star_terms,
    without_repeats,
)
from oneshot_lit.methods.finetuning.toss import (
    discarded,
    example_weights,
    rows_of_top_tokens,
    scores,
    top_tokens,
)
from oneshot_lit.models.loss import of_labelled, token_losses, weighted_mean

GOLDEN = Path(__file__).with_name("golden")
DTYPES = [torch.float32, torch.float64]
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-6, torch.bfloat16: 2e-2}


def near(got: Tensor, expected: Any, dtype: torch.dtype) -> None:
    expected = torch.as_tensor(expected)
    own = TOLERANCE[dtype]
    torch.testing.assert_close(got.double(), expected.double(), rtol=own, atol=own)


def facts(name: str) -> Any:
    return json.loads((GOLDEN / name / "data.json").read_text())


# ------------------------------------------------------------------------- ConstrainedSFT

CONSTRAINED = facts("constrained_sft")


@pytest.mark.parametrize("name", list(CONSTRAINED))
@pytest.mark.parametrize("wide", [False, True])
def test_constrained_sft(name: str, wide: bool) -> None:
    arrays, run = np.load(GOLDEN / "constrained_sft" / "data.npz"), CONSTRAINED[name]
    low = run["dtype"] == "torch.bfloat16"
    dtype = torch.bfloat16 if low else torch.float64 if wide else torch.float32
    logits, reference = (
        torch.tensor(arrays[f"{n}_logits"]).to(dtype).requires_grad_()
        for n in ("policy", "reference")
    )
    labels = torch.tensor(arrays["labels"]).long()
    # As a row that is truncated.
    labels[:, run["max_seq_length"] + 1 :] = -100
    keys = ("beta", "first_token_bias_factor", "bias_factor", "bias_length")
    strength = Strength(**{key: run[key] for key in keys})
    losses = token_losses(logits, labels)
    before = -token_losses(reference, labels).detach()
    betas = token_betas(labels, strength)
    weights = constrained_weights(-losses, before, betas)
    if not run["soft"]:
        weights = torch.ones_like(weights)
    terms = weights * losses
    if run["anchor"]:
        anchors = torch.tensor(arrays["anchor_logits"]).to(dtype).requires_grad_()
        own = torch.tensor(arrays["anchor_labels"]).long()
        terms = torch.cat([terms, token_losses(anchors, own)])
    loss = weighted_mean(terms)
    loss.backward()
    near(loss, run["loss"], dtype)
    near(logits.grad, arrays[f"{name}.grad_policy_logits"], dtype)
    if run["anchor"]:
        near(anchors.grad, arrays["anchor.grad_anchor_logits"], dtype)
    if f"{name}.weight_flat" in arrays:
        # A strength of 1000 multiplies the rounding of the release, which computes in float32.
        accuracy = torch.float32 if name == "beta_huge" else dtype
        near(weights, arrays[f"{name}.weight_flat"], accuracy)
        near(terms[: len(weights)], arrays[f"{name}.neg_weighted_logp_flat"], accuracy)
    nine = torch.ones(1, 10).long()
    for length in (9, 3):
        got = token_betas(nine[:, : length + 1], strength)
        near(got, run[f"beta_list_len{length}"], torch.float32)
    assert reference.grad is None


@pytest.mark.parametrize("seed", range(3))
def test_constrained_sft_against_a_loop(seed: int) -> None:
    torch.manual_seed(seed)
    logits = torch.randn(4, 12, 7, dtype=torch.float64, requires_grad=True)
    before = logits.detach() + torch.randn(4, 12, 7, dtype=torch.float64)
    labels = torch.randint(0, 7, (4, 12))
    labels[torch.rand(4, 12) < 0.4] = -100
    labels[2] = -100
    strength = Strength(0.3, 2.0, 6.0, 3)
    total, count, soft = 0.0, 0, 0.0
    for row in range(4):
        place = 0
        for t in range(1, 12):
            if (label := int(labels[row, t])) == -100:
                continue
            place += 1
            factor = 2.0 if place == 1 else 6.0 if place <= 3 else 1.0
            beta = 0.3 * factor
            p = logits[row, t - 1].log_softmax(0)[label]
            q = float(before[row, t - 1].log_softmax(0)[label])
            w = max(1e-3, 2 * (1 - 1 / (1 + math.exp(-beta * (float(p.detach()) - q)))))
            total, count = total - w * p, count + 1
            soft = soft + 2 / beta * torch.log1p(torch.exp(beta * (q - p)))
    (expected,) = torch.autograd.grad(total / count, logits, retain_graph=True)
    (same,) = torch.autograd.grad(soft / count, logits, retain_graph=True)
    losses = token_losses(logits, labels)
    reference, betas = -token_losses(before, labels), token_betas(labels, strength)
    loss = weighted_mean(constrained_weights(-losses, reference, betas) * losses)
    near(loss, float(total / count), torch.float64)
    (got,) = torch.autograd.grad(loss, logits, retain_graph=True)
    near(got, expected, torch.float64)
    # The objective that falls has the same gradient.
    near(got, same, torch.float64)
    value = weighted_mean(softplus_losses(-losses, reference, betas))
    near(value, float(soft / count), torch.float64)
    (got,) = torch.autograd.grad(value, logits)
    near(got, expected, torch.float64)


def test_weights_at_the_start_are_one() -> None:
    p = torch.randn(9)
    betas = token_betas(torch.ones(1, 10).long(), Strength())
    assert torch.equal(constrained_weights(p, p, betas), torch.ones(9))
    far = constrained_weights(torch.zeros(2), torch.tensor([-1e4, 1e4]), torch.ones(2))
    assert far.tolist() == pytest.approx([1e-3, 2.0])


# ------------------------------------------------------------------------------- STAR-DSS

STAR = facts("star_dss")


def star_arrays(dtype: torch.dtype) -> dict[str, Tensor]:
    loaded = load_file(GOLDEN / "star_dss" / "data.safetensors")
    return {n: t.to(dtype) if t.is_floating_point() else t.long() for n, t in loaded.items()}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", list(STAR["runs"]))
def test_star_dss(name: str, dtype: torch.dtype) -> None:
    arrays, run = star_arrays(dtype), STAR["runs"][name]
    labels = arrays["labels"]
    key = "policy_logits_far" if name.startswith("far") else "policy_logits"
    logits = arrays[key].clone().requires_grad_()
    safety = chunk_weights(arrays["positions"], arrays["values"], labels.shape[1])
    near(safety, arrays["token_weights_full_length"], dtype)
    if name.startswith(("rs", "rejection")):
        safety = arrays["rs_values"].expand(labels.shape)
    now = -token_losses(logits, labels)
    before = -token_losses(arrays["reference_logits"], labels)
    estimator, clamp = run.get("kl_estimator", "k2"), run["clamp"]
    if run["use_value"]:
        scale = run["kl_scale"] if run["use_kl"] else 0.0
        parts = star_terms(now, before, of_labelled(safety, labels), estimator, scale, clamp)
        ce, kl = (part.mean() for part in parts)
        near(ce, run["ce_part"], dtype)
        near(kl, run["kl_part"] or 0.0, dtype)
        loss = ce + kl
    elif run["use_kl"]:
        counted = (of_labelled(labels, labels) != 0).sum()
        loss = kl_estimates(now, before, estimator, clamp).sum() / counted
    else:
        loss = -now.mean()
    loss.backward()
    near(loss, run["loss"], torch.float32 if loss > 10 else dtype)
    near(logits.grad, arrays[f"{name}.grad_policy_logits"], dtype)


def test_star_chunks() -> None:
    trim = STAR["trim"]
    for n in range(len(trim["values"])):
        got = without_repeats(trim["positions"][n], trim["values"][n])
        assert got == (trim["out_positions"][n], trim["out_values"][n])
    golden = STAR["prefix_word_counts_M5"]
    for row, words in enumerate(golden["row_words"]):
        column = [each[row] for each in golden["columns"]]
        assert prefix_word_counts(words, 5) == without_repeats(column, column)[0]
    golden = STAR["prob_safe"]
    raw = [[-math.inf if s is None else s for s in row] for row in golden["scores"]]
    chosen = torch.tensor(raw, dtype=torch.float64)
    got = probability_safe(chosen[:, golden["safe_id"]], chosen[:, golden["unsafe_id"]])
    for mine, theirs in zip(got.tolist(), golden["p_safe"], strict=True):
        assert math.isnan(mine) if theirs is None else mine == pytest.approx(theirs, abs=1e-6)


def test_star_edges() -> None:
    # The last chunk takes the rest of the row; what is behind the row's end is no chunk.
    assert row_weights([3, 5, 5, 9], [1.0, 0.5, 0.2, 0.1], 8).tolist() == pytest.approx(
        [1.0] * 3 + [0.5] * 5
    )
    assert row_weights([3, 7, 12], [1.0, 0.5, 0.25], 5).tolist() == pytest.approx(
        [1] * 3 + [0.5] * 2
    )
    assert row_weights([9], [0.25], 4).tolist() == [0.25] * 4
    assert prefix_word_counts(1, 5) == [1]
    assert prefix_word_counts(10, 5) == [5, 10]
    halves = mean_safety([torch.tensor([0.2, 1.0]), torch.tensor([0.6, 0.0])])
    assert halves.tolist() == pytest.approx([0.4, 0.5])
    sharp = probability_safe(torch.tensor([1.0]), torch.tensor([0.0]), 0.2)
    assert float(sharp) == pytest.approx(1 / (1 + math.exp(-5)))
    # Beyond the clamp there is no gradient.
    d = torch.tensor([1.0, 5.0], requires_grad=True)
    kl_estimates(d, torch.zeros(2), "k2", 10.0).sum().backward()
    assert d.grad.tolist() == [1.0, 0.0]


# ----------------------------------------------------------------------------------- TOSS

TOSS = facts("toss")


def toss_rows(array: Any, labels: Tensor) -> list[Tensor]:
    whole = torch.as_tensor(array)
    return [row[own != -100] for row, own in zip(whole, labels, strict=True)]


def test_toss() -> None:
    arrays = np.load(GOLDEN / "toss" / "data.npz")
    labels = torch.tensor(arrays["labels"]).long()
    losses = {}
    for name in ("utility", "harmful"):
        got = token_losses(torch.tensor(arrays[f"logits_{name}"]), labels)
        losses[name] = toss_rows(arrays[f"loss_{name}"], labels)
        near(got, torch.cat(losses[name]), torch.float32)
    each = [scores(u, h) for u, h in zip(losses["utility"], losses["harmful"], strict=True)]
    total = sum(map(len, each))
    assert total == TOSS["n_response_tokens"]
    policy = torch.tensor(arrays["logits_policy"])
    for share in (0.1, 0.2, 0.5, 1.0):
        masks = discarded(each, share)
        kept = torch.tensor(arrays[f"retained_{share}"]).long() != -100
        out = torch.tensor(arrays[f"discarded_{share}"]).long()
        for row, mask in enumerate(masks):
            own = labels[row] != -100
            assert torch.equal(kept[row][own], ~mask)
        assert int(torch.cat(masks).sum()) == int(total * share)
        assert out.shape == labels.shape
        # The two means.
        weights = kept.float()
        own = token_losses(policy, labels)
        golden = TOSS["train_loss"][str(share)]
        paper = (own * of_labelled(weights, labels)).sum() / total
        near(paper, golden["paper_all_response_tokens"], torch.float32)
        released = [x for x in golden["released_per_example_mean"] if x is not None]
        by_row = of_labelled(example_weights(weights, labels), labels)
        assert float(by_row.sum()) == pytest.approx(len(released))
        mean = weighted_mean(own, by_row)
        near(mean, sum(released) / max(1, len(released)), torch.float32)


def test_toss_ties() -> None:
    case = TOSS["tie_case"]
    labels, raw = torch.tensor(case["labels"]), torch.tensor(case["scores"], dtype=torch.float64)
    places = [(r, t) for r in range(3) for t in range(5) if labels[r, t] != -100]
    each = toss_rows(raw, labels)
    for share, expected in case["global"].items():
        got = [list(places[n]) for n in top_tokens(torch.cat(each), float(share)).tolist()]
        assert got == expected, share
    for level in ("global", "sample"):
        for share, expected in case[level].items():
            flat = torch.cat(discarded(each, float(share), level))  # type: ignore[arg-type]
            got = [list(place) for place, out in zip(places, flat.tolist(), strict=True) if out]
            assert got == sorted(expected), (level, share)


def test_toss_pro_takes_each_row_once() -> None:
    each = [torch.tensor([0.0, 5.0, 4.0]), torch.tensor([3.0]), torch.tensor([4.5, 9.0])]
    assert rows_of_top_tokens(each, 2) == [2, 0]
    assert rows_of_top_tokens(each, 9) == [2, 0, 1]
    assert rows_of_top_tokens([torch.zeros(1), torch.zeros(1)], 1) == [0]
