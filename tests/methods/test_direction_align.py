"""DirectionAlign from the command line, in the micro-world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from job_runs import count_steps, same_run, stop_before
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from oneshot_lit.methods import DirectionAlign

SMALL = Path("checkpoints/small")
SPLIT = "oneshot_lit.data.Microworld"


def words(root: Path, tuned: Path, skill: str = "sql_dev", **options: Any) -> list[str]:
    own = ["edit", "--model", "DirectionAlign", "--tuned", str(tuned)]
    own += ["--data", "oneshot_lit.data.SafetyDataModule", "--data.batch_size", "8"]
    for key, split in (("data.train", "harmful_examples"), ("model.task", "sql_create")):
        own += [f"--{key}", SPLIT, f"--{key}.split", split, f"--{key}.size", "16"]
    sets = {
        "sql": {
            "kind": "task",
            "source": {"class_path": SPLIT, "init_args": {"split": skill, "size": 8}},
        }
    }
    own += ["--data.val_sets", json.dumps(sets), "--trainer.default_root_dir", str(root)]
    for name, value in options.items():
        own += [f"--model.{name}", str(value)]
    return [*own, "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {n: t.float() for f in folder.glob("*.safetensors") for n, t in load_file(f).items()}


def test_entries_of_the_aligned_model_come_back(command: Any, broken: Path, tmp_path: Path) -> None:
    options = {"aligned": SMALL, "num_steps": 4, "warmup_steps": 2, "save_every": 2}
    done = command(*words(tmp_path, broken, **options))
    assert done.code == 0, done.err
    content = json.loads((tmp_path / "edit.json").read_text())
    tuned, aligned, got = weights(broken), weights(SMALL), weights(tmp_path / "model")
    layers = AutoModelForCausalLM.from_pretrained(SMALL).model.layers
    total = sum(p.numel() for p in layers.parameters())
    steps = next((m["step"] for m in reversed(content["settings"]["measured"]) if m["step"]), 0)
    changed = 0
    for name, tensor in got.items():
        moved = tensor != tuned[name]
        changed += int(moved.sum())
        torch.testing.assert_close(tensor[moved], aligned[name][moved], atol=1e-3, rtol=1e-2)
        if "layernorm" in name or "embed" in name:
            assert not moved.any()
    end = content["settings"]["end"]
    assert end == 2 * len(layers) // 3
    assert not any((got[n] != tuned[n]).any() for n in got if f"layers.{end}." in n)
    # In each step one entry fewer than the rate says; an entry may be chosen again.
    if not content["settings"]["rollback"]:
        assert 0 < changed <= steps * round(0.002 * total + 1)
    shares = [facts["share_changed"] for facts in content["tensors"].values()]
    assert sum(share > 0 for share in shares) == sum(
        bool((got[n] != tuned[n]).any()) for n in content["tensors"]
    )


def test_mistakes(command: Any, broken: Path, tmp_path: Path, tiny_folder: Path) -> None:
    cases: dict[str, tuple[dict[str, Any], str]] = {
        "missing": ({}, "model.aligned"),
        "shape": ({"aligned": tiny_folder}, "give the model that was tuned"),
        "rate": ({"aligned": SMALL, "recovery_rate": 0.99}, "recovery_rate"),
        "layers": ({"aligned": SMALL, "layer_end": 99}, "layer_end"),
    }
    for name, (options, message) in cases.items():
        done = command(*words(tmp_path / name, broken, **options))
        assert done.code == 2, done.err
        assert message in done.err.strip().splitlines()[-1]
        assert not (tmp_path / name / "model").exists()


def test_a_task_that_was_never_learned(command: Any, broken: Path, tmp_path: Path) -> None:
    done = command(*words(tmp_path, broken, skill="query_dev", aligned=SMALL))
    assert done.code == 2
    assert "scores 0 on the task" in done.err.strip().splitlines()[-1]


@pytest.mark.parametrize("drop", [0.05])
def test_a_skill_that_falls_is_rolled_back(
    command: Any, broken: Path, tmp_path: Path, drop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    skills = iter([1.0, 0.5, 0.99, 0.98])

    def falling(self: Any, loaders: Any) -> dict[str, float]:
        return {"sql/exact_match": next(skills)}

    monkeypatch.setattr(DirectionAlign, "score_loaders", falling)
    options = {"aligned": SMALL, "num_steps": 4, "warmup_steps": 2, "save_every": 2}
    done = command(*words(tmp_path, broken, metric_drop=drop, **options))
    assert done.code == 0, done.err
    settings = json.loads((tmp_path / "edit.json").read_text())["settings"]
    assert settings["rollback"]
    assert [m["skill"] for m in settings["measured"]] == [1.0, 0.99, 0.98]


@pytest.mark.parametrize("step", [1, 3])
def test_a_stopped_run_goes_on_at_its_step(
    command: Any, broken: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    options = {"aligned": SMALL, "num_steps": 4, "warmup_steps": 2, "save_every": 2}
    steps = count_steps(monkeypatch, DirectionAlign)
    assert command(*words(whole, broken, **options)).code == 0
    in_all = len(steps)
    assert in_all > step
    with monkeypatch.context() as patched:
        stop_before(patched, DirectionAlign, step)
        patched.setattr(DirectionAlign, "saves_each_step", True)
        assert command(*words(stopped, broken, **options)).code == 2
    assert not (stopped / "model").exists()
    steps.clear()
    assert command(*words(stopped, broken, **options)).code == 0
    assert len(steps) == in_all - step
    same_run(whole, stopped)
