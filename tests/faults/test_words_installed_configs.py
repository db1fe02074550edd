"""The configs and the micro-world models come with the package and are found from any folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from oneshot_lit.io.shipped import or_shipped
from oneshot_lit.methods import LanguageModelModule
from oneshot_lit.study.spec import load_study

ROOT = Path(__file__).parents[2]
SHIPPED = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").glob("*/*.yaml"))


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_shipped_config_is_listed(command: Callable[..., Any], elsewhere: Path) -> None:
    done = command("configs")
    assert [line.split()[0] for line in done.out.splitlines()] == SHIPPED
    assert len(SHIPPED) > 40


@pytest.mark.parametrize(
    "words",
    [
        ("fit", "--config", "configs/attack/benign.yaml", "--config=configs/strategy/ddp.yaml"),
        ("test", "-c", "configs/evaluate/microworld.yaml"),
        ("judge", "--config", "configs/judge/keyword.yaml"),
    ],
)
def test_a_shipped_config_is_taken_in_any_folder(
    words: tuple[str, ...], command: Callable[..., Any], monkeypatch, tmp_path: Path
) -> None:
    here = command(*words, "--print_config")
    monkeypatch.chdir(tmp_path)
    there = command(*words, "--print_config")
    assert there.code == 0, there.err
    assert there.out == here.out


def test_a_file_in_the_working_folder_comes_first(
    command: Callable[..., Any], elsewhere: Path
) -> None:
    path = elsewhere / "configs" / "attack" / "benign.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("{seed_everything: 41}\n")
    done = command("fit", "--config", "configs/attack/benign.yaml", "--print_config")
    assert "seed_everything: 41" in done.out
    assert "checkpoints/medium" not in done.out


def test_what_is_not_shipped_is_named_as_it_was_given(
    command: Callable[..., Any], elsewhere: Path
) -> None:
    for name in ("configs/attack/nothing.yaml", "attack/benign.yaml", "configs/../pyproject.toml"):
        assert or_shipped(name) == name
        assert f"{name}: config file not found" in command("fit", "--config", name).error
    assert or_shipped("configs") == str(ROOT / "configs")


def test_a_study_and_its_files_are_found(elsewhere: Path) -> None:
    study = load_study(Path(or_shipped("configs/study/demo.yaml")))
    files = [file for stage in study.stages for c in stage.commands.values() for file in c.config]
    assert files
    assert all(Path(file).is_file() for file in files)


def test_a_shipped_model_is_found(command: Callable[..., Any], elsewhere: Path) -> None:
    module = LanguageModelModule("checkpoints/small")
    assert len(module.tokenizer) > 100
    assert module.context_length is not None
    done = command("memory", "--model", "checkpoints/small")
    assert done.code == 0, done.err
    shutil.copytree(ROOT / "checkpoints" / "medium", elsewhere / "checkpoints" / "small")
    assert LanguageModelModule("checkpoints/small").model_name_or_path == "checkpoints/small"


def test_configs_are_copied(command: Callable[..., Any], elsewhere: Path) -> None:
    assert command("configs", "--copy", "mine").out == "configs copied to mine/configs\n"
    copied = sorted(path.relative_to("mine").as_posix() for path in Path("mine").glob("*/*/*.yaml"))
    assert copied == SHIPPED
    assert "mine/configs is there already" in command("configs", "--copy", "mine").error


@pytest.mark.long
def test_a_wheel_holds_them(tmp_path: Path) -> None:
    clone, site, work = tmp_path / "clone", tmp_path / "site", tmp_path / "work"
    for name in ("src", "configs", "checkpoints"):
        skipped = shutil.ignore_patterns("*.egg-info", "__pycache__")
        shutil.copytree(ROOT / name, clone / name, ignore=skipped)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    words += ["--no-index", "--disable-pip-version-check", "--target", str(site), str(clone)]
    built = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert built.returncode == 0, built.stderr
    work.mkdir()

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(site), *(p for p in sys.path if p and p != str(ROOT / "src"))])
        return subprocess.run(
            [sys.executable, "-m", "oneshot_lit", *words],
            capture_output=True,
            text=True,
            timeout=240,
            cwd=work,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    listed = run("configs")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == SHIPPED
    done = run(
        *("fit", "--config", "configs/attack/harmful_examples.yaml", "--trainer.max_steps", "1"),
        *("--model.model_name_or_path", "checkpoints/small", "--trainer.accelerator", "cpu"),
    )
    assert done.returncode == 0, done.stderr
    assert (work / "runs/attacked/model/model.safetensors").is_file()
    assert str(site) not in (work / "runs/attacked/fit.yaml").read_text(encoding="utf-8")
