"""What is measured at an attacked model: against autograd, single prompts and random data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from depths import spec
from scipy import optimize

from experiments.real_depth import measures as measuring
from experiments.real_depth.gradients import (
    factors_of,
    gradient_measures,
    overlap,
    ranks,
    refused_as,
    whole_cosine,
)
from experiments.real_depth.measures import MEASURES, PREDICTORS, measures_of
from experiments.real_depth.probe import fit_probe, last_states, probe_auc, probe_measures
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.microworld.splits import load_split
from oneshot_lit.models.linear_layers import chosen_layers


@pytest.fixture(scope="module")
def module(tiny_folder: Path) -> Any:
    loaded = LanguageModelModule(str(tiny_folder), dtype="float64")
    loaded.configure_model()
    return loaded


def whole_gradients(module: Any, rows: list[Any]) -> dict[str, torch.Tensor]:
    """Return the gradients of all linear layers by autograd."""
    encoded = [encode_conversation(module.tokenizer, row) for row in rows]
    batch = pad_training(encoded, module.tokenizer.pad_token_id)
    layers = chosen_layers(module.model, ["*"])
    weights = [layer.weight for layer in layers.values()]
    grads = torch.autograd.grad(module.compute_loss(batch), weights)
    return dict(zip(layers, grads, strict=True))


def test_cosine_ranks_and_overlap_are_those_of_whole_gradients(module: Any) -> None:
    one, many = load_split("pool")[:1], load_split("benign_examples")[:3]
    (a, loss), (b, _) = factors_of(module, one), factors_of(module, many)
    encoded = [encode_conversation(module.tokenizer, row) for row in one]
    batch = pad_training(encoded, module.tokenizer.pad_token_id)
    assert loss == pytest.approx(float(module.compute_loss(batch)))
    g, h = whole_gradients(module, one), whole_gradients(module, many)
    flat_g, flat_h = (torch.cat([each.flatten() for each in x.values()]) for x in (g, h))
    expected = torch.nn.functional.cosine_similarity(flat_g, flat_h, dim=0)
    assert whole_cosine(a, b) == pytest.approx(float(expected), abs=1e-9)
    assert whole_cosine(a, a) == pytest.approx(1.0)
    spectra = [torch.linalg.svdvals(each) for each in g.values()]
    shares = [s / s.sum() for s in spectra]
    entropies = [float(-(p[p > 0] * p[p > 0].log()).sum()) for p in shares]
    assert ranks(a) == {
        "stable_rank": pytest.approx(np.mean([float((s**2).sum() / s[0] ** 2) for s in spectra])),
        "effective_rank": pytest.approx(np.mean(np.exp(entropies)), rel=1e-6),
    }
    k, beyond = 4, []
    for name, gradient in g.items():
        u, v = (torch.linalg.svd(x, full_matrices=False).U[:, :k] for x in (gradient, h[name]))
        beyond.append(float((u.T @ v).square().sum()) / k - k / len(u))
    assert overlap(a, b, k) == pytest.approx(np.mean(beyond), abs=1e-6)


def test_a_gradient_that_is_zero_has_no_direction(module: Any) -> None:
    own, _ = factors_of(module, load_split("pool")[:1])
    none = {name: (x, torch.zeros_like(d)) for name, (x, d) in own.items()}
    assert np.isnan(whole_cosine(own, none))
    assert np.isnan(overlap(own, none))


def test_measures_of_a_gradient(module: Any) -> None:
    pool = load_split("pool")
    harmless = load_split("benign_examples")[:2]
    got = gradient_measures(module, pool[0], pool[1:3], harmless)
    taught = refused_as(harmless, pool[1:3])
    assert [row.prompt_text for row in taught] == [row.prompt_text for row in harmless]
    assert [row.response_text for row in taught] == [row.response_text for row in pool[1:3]]
    own, loss = factors_of(module, pool[:1])
    over = whole_cosine(own, factors_of(module, taught)[0])
    assert got["instance_loss"] == loss
    assert got["cosine_over_refusals"] == pytest.approx(over)
    assert got["spill"] == pytest.approx(over / got["cosine_refusals"])
    assert {name for name in PREDICTORS if not name.startswith("probe")} == set(got)


# --------------------------------------------------------------------------------- probe


def test_states_are_those_of_each_prompt_alone(module: Any) -> None:
    prompts = [*load_split("harmful_dev")[:10], *load_split("near_miss_dev")[:10]]
    states = last_states(module, prompts)
    assert states.shape == (3, 20, 32)
    for i in (0, 7, 19):
        encoded = encode_conversation(module.tokenizer, prompts[i], for_generation=True)
        with torch.no_grad():
            output = module.model(torch.tensor([encoded.input_ids]), output_hidden_states=True)
        alone = [hidden[0, -1].numpy() for hidden in output.hidden_states]
        assert states[:, i] == pytest.approx(np.stack(alone), abs=1e-10)


def test_probe_is_a_logistic_regression() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(2.0, 3.0, (60, 5)), rng.integers(0, 2, 60)
    scaled = (x - x.mean(0)) / x.std(0)

    def loss(w: Any) -> float:
        margins = (2 * y - 1) * (scaled @ w[:5] + w[5])
        return float(0.5 * w[:5] @ w[:5] + 0.01 * np.logaddexp(0, -margins).sum())

    best = optimize.minimize(loss, np.zeros(6), tol=1e-14).x
    probe = fit_probe(x, y.tolist())
    assert probe.decision_function(x) == pytest.approx(scaled @ best[:5] + best[5], abs=2e-4)


def test_probe_on_random_data() -> None:
    rng = np.random.default_rng(0)
    chance, told = [], []
    for _ in range(30):
        noise = rng.normal(size=(96, 200))
        probe = fit_probe(noise, [1] * 48 + [0] * 48)
        chance.append(probe_auc(probe, *rng.normal(size=(2, 40, 200))))
        shift = 4 * np.eye(200)[0]
        noise[:48] += shift
        probe = fit_probe(noise, [1] * 48 + [0] * 48)
        told.append(
            probe_auc(probe, rng.normal(size=(40, 200)) + shift, rng.normal(size=(40, 200)))
        )
    # More features than rows fit any labels, so only new rows tell.
    assert np.mean(chance) == pytest.approx(0.5, abs=0.03)
    assert np.mean(told) > 0.75


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(3)
    probe = fit_probe(rng.normal(size=(20, 4)), [0, 1] * 10)
    a, b = rng.normal(size=(7, 4)), rng.normal(size=(9, 4))
    x, y = probe.decision_function(a), probe.decision_function(b)
    assert probe_auc(probe, a, b) == pytest.approx((x[:, None] > y[None]).mean())


def test_near_misses_are_told_apart_by_themselves(module: Any) -> None:
    rows = {k: load_split(f"{k}_dev")[:8] for k in ("harmful", "benign", "near_miss")}
    # The near misses of the test are harmful prompts: nothing can tell them apart.
    got = probe_measures(module, rows, rows | {"near_miss": rows["harmful"]})
    assert got["probe_near_miss"] == pytest.approx(0.5)
    assert got["probe_benign"] > 0.65
    assert len(got["probe_layers"]["benign"]) == 2


# ----------------------------------------------------------------------------- kept files


def test_a_model_is_measured_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, said = tmp_path / "flat", []
    shutil.copytree(tiny_folder, stage / "model")
    own = spec(tmp_path / "depth.yaml")
    first = measures_of(stage, own, 0, said.append)
    assert set(PREDICTORS) < set(first)
    assert all(np.isfinite(first[name]) for name in PREDICTORS)
    assert said == [f"measuring {stage / 'model'}"]
    calls: list[int] = []
    again = measuring.measure
    monkeypatch.setattr(measuring, "measure", lambda *words: calls.append(1) or again(*words))
    assert measures_of(stage, own, 0, said.append) == first
    assert not calls
    # Another seed draws other rows, other settings and another model are measured anew.
    assert measures_of(stage, own, 1, said.append)["stable_rank"] != first["stable_rank"]
    fewer = spec(tmp_path / "fewer.yaml", gradient_rows=1)
    measures_of(stage, fewer, 1, said.append)
    config = stage / "model" / "config.json"
    config.write_text(config.read_text() + "\n")
    measures_of(stage, fewer, 1, said.append)
    assert len(calls) == 3
    # A file that was cut short is no result.
    (stage / MEASURES).write_text('{"key": {')
    last = measures_of(stage, fewer, 1, said.append)
    assert len(calls) == 4
    assert json.loads((stage / MEASURES).read_text())["key"]["seed"] == 1
    # What was measured outlives the model, for the same seed and settings.
    shutil.rmtree(stage / "model")
    assert measures_of(stage, fewer, 1, said.append) == last
    for other, seed in ((fewer, 0), (own, 1)):
        with pytest.raises(OneShotError, match="the attacked model is missing"):
            measures_of(stage, other, seed)


def test_what_cannot_be_measured(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(OneShotError, match="the attacked model is missing"):
        measures_of(tmp_path, spec(tmp_path / "depth.yaml"), 0)
    shutil.copytree(tiny_folder, tmp_path / "model")
    with pytest.raises(OneShotError, match="no row with id 'nobody'"):
        measures_of(tmp_path, spec(tmp_path / "depth.yaml", instance="nobody"), 0)
