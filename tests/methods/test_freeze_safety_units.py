"""SSAH's frozen units while a model is trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from oneshot_lit.callbacks import FreezeSafetyUnits
from oneshot_lit.data import Microworld
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.finetuning.unit_search import UnitOptions, choose_units, masks_of

CALLBACK = "oneshot_lit.callbacks.FreezeSafetyUnits"


def freezing(**options: Any) -> list[str]:
    source = "oneshot_lit.data.Microworld"
    given = {
        "safety": {"class_path": source, "init_args": {"split": "refusals", "size": 9}},
        "utility": {"class_path": source, "init_args": {"split": "guard", "size": 9}},
    }
    callback = {"class_path": CALLBACK, "init_args": given | options}
    return ["--trainer.callbacks", json.dumps([callback])]


def test_frozen_entries_do_not_move(
    command: Any, fit_words: list[str], tiny_folder: Path, tmp_path: Path
) -> None:
    optimizer = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2, "weight_decay": 0.1}}
    words = [*fit_words, "--model.optimizer", json.dumps(optimizer)]
    done = command(*words, *freezing(safety_share=0.1, complex_share=0.2, utility_share=0.1))
    assert done.code == 0, done.err
    before = load_file(tiny_folder / "model.safetensors")
    after = load_file(tmp_path / "run" / "model" / "model.safetensors")
    frozen = json.loads((tmp_path / "run" / "frozen_units.json").read_text())["frozen"]
    assert set(frozen) == {
        f"model.layers.{n}.{kind}" for n in (0, 1) for kind in ("mlp.down_proj", "self_attn.o_proj")
    }
    assert sum(len(units) for units in frozen.values()) > 10
    for name, units in frozen.items():
        same = before[f"{name}.weight"] == after[f"{name}.weight"]
        assert same[:, units].all()
        others = [unit for unit in range(same.shape[1]) if unit not in units]
        assert not same[:, others].all(0).any()
        if name.endswith("down_proj"):
            for source in ("gate_proj", "up_proj"):
                made = f"{name.removesuffix('down_proj')}{source}.weight"
                assert (before[made] == after[made])[units].all()
                assert not (before[made] == after[made])[others].all(1).any()


def test_masks_of_grouped_value_heads() -> None:
    name = "model.layers.0.self_attn.o_proj"
    shapes = {
        f"{name}.weight": torch.Size([8, 8]),
        "model.layers.0.self_attn.v_proj.weight": torch.Size([4, 8]),
    }
    # Four query heads of two units, two value heads: heads 0 and 1 share the first.
    masks = masks_of({name: [0, 2, 1, 4]}, shapes, head_dim=2)
    rows = masks["model.layers.0.self_attn.v_proj.weight"].all(1).tolist()
    assert rows == [True, False, False, False]
    assert masks[f"{name}.weight"].all(0).tolist() == [n in (0, 1, 2, 4) for n in range(8)]
    assert not masks_of({name: [0]}, shapes, head_dim=2, layers=0)


def test_ranking_over_all_layers_or_in_each() -> None:
    shares = {"redundant": 0.0, "safety": 0.25, "utility": 0.0}
    safety = {
        "layers.0.mlp.down_proj": torch.tensor([9.0, 8.0, 1.0, 2.0]),
        "layers.1.mlp.down_proj": torch.tensor([3.0, 1.0, 1.0, 1.0]),
    }
    utility = {name: torch.ones(4) for name in safety}
    options = UnitOptions(shares, complex_share=0.0, scaled=False)
    frozen, groups = choose_units(safety, utility, options)
    assert list(frozen.values()) == [[0, 1], []]
    assert groups == {"redundant": 0, "safety": 2, "utility": 0, "complex": 6}
    each, _ = choose_units(safety, utility, UnitOptions(shares, 0.0, "layer", scaled=False))
    assert list(each.values()) == [[0], [0]]


def test_mistakes(command: Any, fit_words: list[str], tmp_path: Path) -> None:
    done = command(*fit_words, "--model.peft", "{r: 2}", *freezing())
    assert done.code == 2
    assert "FreezeSafetyUnits" in done.err.strip().splitlines()[-1]
    rows = Microworld("refusals", size=3)
    with pytest.raises(OneShotError, match="add up to more than 1"):
        FreezeSafetyUnits(rows, rows, safety_share=0.9, utility_share=0.2)
    unanswered = {"class_path": "oneshot_lit.data.Microworld", "init_args": {"split": "sql_dev"}}
    done = command(*fit_words, *freezing(safety=unanswered))
    assert done.code == 2
    assert "needs rows with answers" in done.err.strip().splitlines()[-1]
