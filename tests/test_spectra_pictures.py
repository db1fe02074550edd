"""What the pictures of spectra show, read back from the figures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from oneshot_lit import plots

LAYERS = {
    f"model.layers.{layer}.self_attn.{kind}.weight": [4.0 / (1 + layer), 1.0, 0.1]
    for layer in range(3)
    for kind in ("q_proj", "v_proj")
}


def test_energy_is_the_mean_over_matrices() -> None:
    spectra = {0: {"a.weight": [2.0, 1.0], "b.weight": [3.0]}, 4: {"a.weight": [1.0, 1.0, 0.0]}}
    figure = plots.energy_curves(spectra)
    first, last = figure.axes[0].lines[:2]
    assert list(first.get_ydata()) == pytest.approx([(0.8 + 1) / 2, 1])
    assert list(last.get_ydata()) == pytest.approx([0.5, 1, 1])
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["epoch 0", "epoch 4"]
    plt.close(figure)


def test_rank_map_has_layers_and_kinds() -> None:
    extra = {"lm_head.weight": [1.0, 1.0], "model.layers.1.mlp.experts.3.up_proj.weight": [1.0]}
    figure = plots.rank_map(LAYERS | extra | {"model.layers.0.zero.weight": []}, "epoch 0")
    axes = figure.axes[0]
    table = np.asarray(axes.images[0].get_array())
    assert table.shape == (3, 3)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["q_proj", "v_proj", "up_proj"]
    assert table[1, 2] == pytest.approx(1)
    assert np.isnan(np.ma.filled(table, np.nan)[0, 2])
    # Flatter spectra have a higher effective rank.
    assert table[0, 0] < table[1, 0] < table[2, 0]
    assert "lm_head 2.0" in axes.get_xlabel()
    plt.close(figure)


def test_adapters_keep_their_names_apart() -> None:
    prefix = "base_model.model.model.layers.0.self_attn.q_proj."
    names = ["base_layer.weight", "lora_A.default.weight", "lora_B.default.weight"]
    figure = plots.rank_map({prefix + name: [1.0] for name in names}, "step 3")
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels == ["q_proj", "q_proj.lora_A", "q_proj.lora_B"]
    plt.close(figure)


def test_decay_is_the_median_matrix() -> None:
    spectra = {0: {"a": [2.0, 1.0], "b": [4.0, 1.0], "c": [1.0, 0.1]}, 1: {"a": [1.0]}}
    figure = plots.energy_curves(spectra)
    lines = figure.axes[1].lines
    assert list(lines[0].get_ydata()) == pytest.approx([1, 0.25])
    assert list(lines[1].get_ydata()) == pytest.approx([1])
    plt.close(figure)


def test_spectra_without_any_gradient_draw() -> None:
    for figure in (
        plots.energy_curves({0: {"a": []}, 1: {"a": [0.0]}}),
        plots.rank_map({"a": []}, "epoch 0"),
    ):
        plt.close(figure)
