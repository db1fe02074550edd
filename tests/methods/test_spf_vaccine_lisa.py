"""SPF, Vaccine and Lisa from the command line, in the micro-world."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

ATTACK = "configs/attack/harmful_examples.yaml"
OVERLAYS = ("spf", "spf_released", "lisa")
LOGGED = {
    "spf": {"projected_tensors", "safety_loss", "safety_change"},
    "spf_released": {"safety_loss"},
    "lisa": {"proximal"},
    "vaccine": set(),
}


def words(name: str, root: Path, *more: str) -> list[str]:
    """A quick fit of the small model: four steps an epoch, two epochs."""
    base = [] if name == "vaccine" else ["--config", ATTACK]
    rows = {"class_path": "oneshot_lit.data.Microworld", "init_args": {}}
    rows["init_args"] = {"split": "refusals" if name == "vaccine" else "harmful_examples"}
    rows["init_args"] |= {"size": 16}
    return [
        *["fit", *base, "--config", f"configs/defence/{name}.yaml"],
        *["--model.model_name_or_path", "checkpoints/small", "--data.train", json.dumps(rows)],
        *["--data.batch_size", "4", "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"],
        *["--trainer.default_root_dir", str(root), "--trainer.enable_progress_bar", "false"],
        *["--trainer.log_every_n_steps", "1", "--trainer.callbacks", "[]", *more],
    ]


@pytest.mark.parametrize("name", [*OVERLAYS, "vaccine"])
def test_a_fit_resumes_and_its_output_loads(command: Any, tmp_path: Path, name: str) -> None:
    every = ["--checkpoint.every_n_train_steps", "1"]
    more = ["--model.finetune_step", "2"] if name == "lisa" else []
    done = command(*words(name, tmp_path / "whole", *every, *more))
    assert done.code == 0, done.err
    cut = words(name, tmp_path / "cut", *every, *more)
    done = command(*cut, "--trainer.max_steps", "3")
    assert done.code == 0, done.err
    done = command(*cut, "--ckpt_path", "last")
    assert done.code == 0, done.err
    weights = [
        load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "cut")
    ]
    start = load_file("checkpoints/small/model.safetensors")
    for key, weight in weights[0].items():
        assert (weight == weights[1][key]).all(), key
    assert any((weights[0][key].float() != w.float()).any() for key, w in start.items())
    AutoModelForCausalLM.from_pretrained(tmp_path / "whole" / "model")
    (log,) = (tmp_path / "whole").rglob("metrics.csv")
    logged = set(log.read_text().splitlines()[0].split(","))
    assert {f"train/{key}" for key in LOGGED[name]} <= logged


@pytest.mark.parametrize("name", OVERLAYS)
def test_the_configs_are_overlays(command: Any, name: str) -> None:
    shown = command(
        "fit", "--config", ATTACK, "--config", f"configs/defence/{name}.yaml", "--print_config"
    )
    assert shown.code == 0, shown.err
    config, own = yaml.safe_load(shown.out), Path(f"configs/defence/{name}.yaml").read_text()
    attack = yaml.safe_load(Path(ATTACK).read_text())
    model = yaml.safe_load(own)["model"]
    assert config["model"]["class_path"] == model["class_path"]
    assert config["model"]["init_args"].items() >= model["init_args"].items()
    kept = config["model"]["init_args"]["optimizer"]["init_args"]
    assert kept.items() >= attack["model"]["init_args"]["optimizer"]["init_args"].items()


@pytest.mark.parametrize("name", OVERLAYS)
def test_without_its_rows_a_fit_is_refused(command: Any, tmp_path: Path, name: str) -> None:
    done = command(*words(name, tmp_path / "run", "--data.side", "null"))
    assert done.code == 2
    stream = "alignment" if name == "lisa" else "safety"
    assert f"data.side.{stream}: missing" in done.error
    assert not (tmp_path / "run" / "model").exists()


def test_lisa_without_turns(command: Any, tmp_path: Path) -> None:
    none = ["--model.alignment_step", "0"]
    done = command(*words("lisa", tmp_path / "run", *none, "--model.finetune_step", "0"))
    assert done.code == 2
    assert "both are 0" in done.error
    done = command(*words("lisa", tmp_path / "run", *none, "--data.side", "null"))
    assert done.code == 0, done.err


def test_a_checkpoint_of_another_method(command: Any, tmp_path: Path) -> None:
    every = ["--checkpoint.every_n_train_steps", "1"]
    spf = words("spf", tmp_path / "run", *every, "--trainer.max_steps", "2")
    assert command(*spf).code == 0
    last = str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    done = command(*words("lisa", tmp_path / "other", "--ckpt_path", last))
    assert done.code == 2
