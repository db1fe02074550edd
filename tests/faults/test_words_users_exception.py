"""An unexpected exception in a user's own code shows its traceback, and one line under it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from oneshot_lit.cli.main import run_command
from oneshot_lit.study.worker import last_line

CODE = """
import torch
from lightning.pytorch import Callback
from oneshot_lit.data import ChatJsonl
from oneshot_lit.errors import OneShotError
from oneshot_lit.evaluation.judges import KeywordJudge
from oneshot_lit.methods import HarmfulFineTuningModule

def fail(place):
    if place == PLACE:
        raise ERROR("own words")

class Module(HarmfulFineTuningModule):
    def __init__(self, **kwargs):
        fail("module")
        super().__init__(**kwargs)
    def compute_loss(self, batch):
        fail("loss")
        if PLACE == "log":
            self.log("wrong", "text")
        return super().compute_loss(batch)

class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr: float = 0.1):
        fail("optimizer")
        super().__init__(params, lr=lr)

class Source(ChatJsonl):
    def __init__(self, path: str):
        fail("source")
        super().__init__(path)
    def rows(self):
        fail("rows")
        try:
            return super().rows()
        except OneShotError:
            if PLACE == "handler":
                raise ERROR("own words")
            raise

class Watcher(Callback):
    def __init__(self):
        fail("callback")
    def on_train_batch_end(self, *arguments):
        fail("hook")

class MyJudge(KeywordJudge):
    def __init__(self):
        fail("judge")
        super().__init__()

fail("import")
"""
PLACES = {
    "import": "TypeError", "module": "AttributeError", "loss": "KeyError",
    "optimizer": "ValueError", "source": "ImportError", "rows": "TypeError", "callback": "KeyError",
    "hook": "AttributeError", "log": "ValueError", "handler": "ValueError", "judge": "TypeError",
}  # fmt: skip


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, fit_words: list[str]):
    """Run a command on the user's package, which fails at a place; returns the code and stderr."""

    def run(place: str, error: str, words: list[Any] | None = None) -> tuple[int, str]:
        name = f"users_{place}"
        (tmp_path / f"{name}.py").write_text(
            CODE.replace("PLACE", repr(place)).replace("ERROR", error)
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        given = [
            *fit_words, "--model", f"{name}.Module", "--data.train", f"{name}.Source",
            "--data.train.path", fit_words[fit_words.index("--data.train.path") + 1],
            "--trainer.callbacks", f"{name}.Watcher", "--model.optimizer", f"{name}.Optimizer",
        ] if words is None else [str(word).replace("NAME", name) for word in words]  # fmt: skip
        # Messages of Lightning would go to the stream of the test before.
        monkeypatch.setattr("logging.raiseExceptions", False)
        capfd.readouterr()
        code = run_command(given)
        sys.modules.pop(name, None)
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("place", PLACES)
def test_a_fault_keeps_its_traceback(users, place: str, tmp_path: Path, rows_file: Path) -> None:
    kind = PLACES[place]
    words = None
    if place == "handler":
        rows_file.write_text("{oops\n")
    if place == "judge":
        words = ["judge", "--judge", "NAME.MyJudge", "--run", tmp_path]
    code, said = users(place, "TypeError" if place == "log" else kind, words)
    assert code == 1
    assert "Traceback (most recent call last)" in said
    assert f"users_{place}" in said
    *above, line = said.rstrip().splitlines()
    assert line.startswith(f"oneshot-lit: error: {kind}: ")
    assert f"users_{place}" in line
    assert " line " in line
    if place != "log":
        assert "own words" in line
        assert f"raise {kind}" in said
    assert not any(each.startswith("oneshot-lit: error") for each in above)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_a_mistake_told_by_a_users_class_is_one_line(users) -> None:
    for place in ("module", "source", "rows", "callback", "loss"):
        code, said = users(place, "OneShotError")
        assert code == 2
        assert "Traceback" not in said
        assert said.rstrip().splitlines()[-1] == "oneshot-lit: error: own words"


def test_arguments_that_an_installed_class_refuses_are_one_line(command, fit_words: list[str]):
    words = ["--trainer.callbacks", "lightning.pytorch.callbacks.Timer"]
    done = command(*fit_words, *words, "--trainer.callbacks.interval", "never")
    assert done.code == 2
    assert "never" in done.error
    done = command(*fit_words, "--trainer.callbacks", "lightning.pytorch.callbacks.ModelPruning",
                   "--trainer.callbacks.pruning_fn", "nothing")  # fmt: skip
    assert done.code == 2
    assert "pruning_fn" in done.error


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import no_such_package_here", "No module named 'no_such_package_here'"),
        ("import torch\ntorch.no_such_thing", "has no attribute 'no_such_thing'"),
        ("from torch import no_such_thing", "cannot import name 'no_such_thing'"),
        ("def broken(:", "SyntaxError: invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd, fit_words: list[str], text: str,
    expected: str,
) -> None:  # fmt: skip
    # The user's import is at fault, not the name that the config gives.
    (tmp_path / "users_import.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run_command([*fit_words, "--model", "users_import.Module"]) == 1
    said = capfd.readouterr().err
    assert "Traceback" in said
    last = said.rstrip().splitlines()[-1]
    assert expected in last
    assert "users_import.py line " in last


@pytest.mark.slow
def test_a_study_shows_the_line_of_a_users_fault(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_in_study.py").write_text(
        CODE.replace("PLACE", "'module'").replace("ERROR", "TypeError")
    )
    root = Path.cwd()
    monkeypatch.chdir(tmp_path)
    fit: dict[str, Any] = {"config": str(root / "configs/attack/harmful_examples.yaml")}
    test = str(root / "configs/evaluate/microworld.yaml")
    stage = {"model": str(root / "checkpoints/small"), "test": test}
    fit["set"] = {"model": "users_in_study.Module", "trainer.accelerator": "cpu"}
    study = {"root": str(tmp_path / "out"), "stages": {"tuned": {**stage, "fit": fit}}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    done = command("study", "--config", tmp_path / "study.yaml")
    assert done.code == 1
    assert "tuned fit: TypeError: own words" in done.error
    log = tmp_path / "out" / "tuned" / "fit.log"
    assert "Traceback" in log.read_text()
    assert last_line(log).startswith("TypeError: own words")
