"""Q-realign from the command line, in the micro-world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from job_runs import count_steps, same_run, stop_before
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oneshot_lit.methods import QRealign
from oneshot_lit.methods.posttuning.fake_quant import LINEARS

SMALL = Path("checkpoints/small")
SPLIT = "oneshot_lit.data.Microworld"


def words(root: Path, tuned: Path, **options: Any) -> list[str]:
    own = ["edit", "--model", "QRealign", "--tuned", str(tuned), "--model.system", ""]
    own += ["--data", "oneshot_lit.data.SafetyDataModule"]
    parts = (("data.train", "harmful_examples", 9), ("model.harmless", "sql_create", 3))
    for key, split, size in parts:
        own += [f"--{key}", SPLIT, f"--{key}.split", split, f"--{key}.size", str(size)]
    own += ["--trainer.default_root_dir", str(root), "--model.max_tokens", "24"]
    for name, value in options.items():
        own += [f"--model.{name}", str(value)]
    return [*own, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def test_the_matrices_are_rounded(command: Any, broken: Path, tmp_path: Path) -> None:
    bits = 4
    done = command(*words(tmp_path, broken, aligned=SMALL, epochs=6, weight_bits=bits))
    assert done.code == 0, done.err
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    for layer in model.model.layers:
        for name in LINEARS:
            weight = layer.get_submodule(name).weight
            # A row holds at most 2^bits values.
            assert max(len(row.unique()) for row in weight) <= 2**bits, name
    content = json.loads((tmp_path / "edit.json").read_text())
    rounded = [n for n, f in content["tensors"].items() if f["decision"] == "rounded"]
    assert len([n for n in rounded if "proj" in n]) == 7 * len(model.model.layers)
    assert not any("embed" in n for n in rounded)
    losses = content["settings"]["losses"]
    assert next(len(own) for own in losses.values()) == 1
    assert [len(own) for own in losses.values()][-1] == 11
    before = load_file(broken / "model.safetensors")
    after = load_file(tmp_path / "model" / "model.safetensors")
    assert before.keys() == after.keys()


def test_a_stopped_run_goes_on_at_its_layer(
    command: Any, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"aligned": SMALL, "epochs": 6}
    assert command(*words(whole, broken, **options)).code == 0
    with monkeypatch.context() as patched:
        stop_before(patched, QRealign, 2)
        # Saved after every layer, however fast these are.
        patched.setattr(QRealign, "saves_each_step", True)
        assert command(*words(stopped, broken, **options)).code == 2
    assert not (stopped / "model").exists()
    taken = count_steps(monkeypatch, QRealign)
    assert command(*words(stopped, broken, **options)).code == 0
    layers = AutoModelForCausalLM.from_pretrained(broken).config.num_hidden_layers
    assert len(taken) == layers - 2
    same_run(whole, stopped)


def test_mistakes(command: Any, broken: Path, tmp_path: Path) -> None:
    for name, options, message in (
        ("missing", {}, "model.aligned"),
        ("bits", {"aligned": SMALL, "weight_bits": 1}, "weight_bits"),
    ):
        done = command(*words(tmp_path / name, broken, **options))
        assert done.code == 2, done.err
        assert message in done.err.strip().splitlines()[-1]
