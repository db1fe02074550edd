"""A class given in place of another has its own defaults, not the former's arguments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from oneshot_lit.cli.fit import OneShotCLI
from oneshot_lit.cli.parsing import typed_last

BARE = ["fit", "--model", "LanguageModelModule", "--model.model_name_or_path", "checkpoints/small"]
BARE += ["--data", "SafetyDataModule", "--trainer.accelerator", "cpu"]
ATTACK = ["fit", "--config", "configs/attack/harmful_examples.yaml", "--trainer.accelerator", "cpu"]


@pytest.fixture
def built(command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Parse a command and build its classes; returns the command line without running it."""
    seen: list[OneShotCLI] = []
    monkeypatch.setattr(OneShotCLI, "_run_subcommand", lambda cli, _: seen.append(cli))

    def build(*words: Any, **overlay: Any) -> OneShotCLI:
        given = []
        if overlay:
            (tmp_path / "overlay.yaml").write_text(yaml.safe_dump(overlay))
            given = ["--config", tmp_path / "overlay.yaml"]
        done = command(*words, *given, "--trainer.default_root_dir", tmp_path / "run")
        assert done.code == 0, done.err
        return seen.pop()

    return build


def recorded(cli: OneShotCLI) -> Any:
    """The configuration as `--print_config` shows it and fit.yaml records it."""
    return yaml.safe_load(cli.config_dump and cli._parser("fit").dump(cli.config["fit"]))


# A rate so that the two cases differ in it; Muon takes matrices only.
CASES = {
    "SGD": {"lr": 0.1},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.5},
    "Adamax": {"betas": [0.5, 0.6]},
    "Adagrad": {"lr_decay": 0.5},
    "Adadelta": {"rho": 0.5},
    "RMSprop": {"momentum": 0.5},
    "NAdam": {"lr": 0.01},
    "RAdam": {"weight_decay": 0.25},
    "ASGD": {"lambd": 0.5},
    "Rprop": {"lr": 0.5},
    "Muon": {"momentum": 0.5},
    "Adafactor": {"lr": 0.5},
    "LBFGS": {"max_iter": 3},
}


def own_defaults(name: str, given: dict[str, Any]) -> dict[str, Any]:
    given = {
        key: tuple(value) if isinstance(value, list) else value for key, value in given.items()
    }
    return getattr(torch.optim, name)([torch.nn.Parameter(torch.zeros(2, 2))], **given).defaults


def check(cli: OneShotCLI, name: str, expected: dict[str, Any]) -> None:
    made = cli.model.optimizer([torch.nn.Parameter(torch.zeros(2, 2))])
    assert type(made) is getattr(torch.optim, name)
    assert made.defaults == expected
    shown = recorded(cli)["model"]["init_args"]["optimizer"]
    assert shown["class_path"] == f"torch.optim.{name}"
    for key, value in shown["init_args"].items():
        same = tuple(value) if isinstance(value, list) else value
        assert same == expected.get(key, same)


@pytest.mark.parametrize("name", CASES)
def test_an_optimizer_has_its_own_defaults(built, name: str) -> None:
    given = CASES[name]
    whole = {"class_path": f"torch.optim.{name}", "init_args": given}
    cli = built(*BARE, model={"init_args": {"optimizer": whole}})
    check(cli, name, own_defaults(name, given))
    # On the command line the order means nothing.
    words = [f"--model.optimizer.{key}={json.dumps(value)}" for key, value in given.items()]
    words.insert(len(name) % 2, f"--model.optimizer=torch.optim.{name}")
    # Of the same class a config's arguments stay.
    kept = {"fused": True} if name == "AdamW" else {}
    check(built(*ATTACK, *words), name, own_defaults(name, given) | kept)


@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad", "Adafactor", "Muon"])
def test_an_optimizer_without_arguments(built, name: str) -> None:
    bare = {"class_path": f"torch.optim.{name}"}
    check(built(*ATTACK, model={"init_args": {"optimizer": bare}}), name, own_defaults(name, {}))
    check(built(*BARE, f"--model.optimizer=torch.optim.{name}"), name, own_defaults(name, {}))


def test_the_default_class_keeps_its_rate(built) -> None:
    made = built(*BARE, "--model.optimizer.weight_decay", "0.25").model.optimizer
    defaults = made([torch.nn.Parameter(torch.zeros(2, 2))]).defaults
    assert (defaults["lr"], defaults["weight_decay"]) == (2e-5, 0.25)
    made = built(*ATTACK, "--model.optimizer.lr", "2e-5").model.optimizer
    defaults = made([torch.nn.Parameter(torch.zeros(2, 2))]).defaults
    assert (defaults["lr"], defaults["weight_decay"], defaults["fused"]) == (2e-5, 0.0, True)


SCHEDULERS = "torch.optim.lr_scheduler"


def spec(path: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class_path": path, "init_args": arguments} if arguments else {"class_path": path}


@pytest.mark.parametrize(
    ("key", "first", "second", "expected"),
    [
        (
            "model.init_args.lr_scheduler",
            spec(f"{SCHEDULERS}.StepLR", step_size=3, gamma=0.5, last_epoch=7),
            spec(f"{SCHEDULERS}.ExponentialLR", gamma=0.25),
            {"gamma": 0.25, "last_epoch": -1},
        ),
        (
            "data.init_args.train",
            spec("oneshot_lit.data.Microworld", split="pool", limit=3, shuffle_seed=5, skip=1),
            spec("oneshot_lit.data.ChatJsonl", path="rows.jsonl"),
            {"limit": None, "shuffle_seed": None, "skip": 0},
        ),
        (
            "data.init_args.instance",
            spec("oneshot_lit.data.PoolInstance", row=3, source=spec("oneshot_lit.data.Microworld",
                 split="pool")),
            spec("oneshot_lit.data.InlineInstance", prompt="a", response="b"),
            {"prompt": "a", "response": "b", "system": None},
        ),
        (
            "trainer.strategy",
            spec("lightning.pytorch.strategies.SingleDeviceStrategy", device="cuda:3"),
            spec("lightning.pytorch.strategies.SingleDeviceStrategy"),
            {"device": "cuda:3"},
        ),
        (
            "trainer.logger",
            spec("lightning.pytorch.loggers.CSVLogger", save_dir="a", name="b", version="c"),
            spec("lightning.pytorch.loggers.TensorBoardLogger", save_dir="d"),
            {"save_dir": "d", "name": "lightning_logs", "version": None},
        ),
    ],
)  # fmt: skip
def test_an_overlay_that_changes_a_class(
    command, key: str, first: dict, second: dict, expected: dict, tmp_path: Path
) -> None:
    words = list(BARE)
    for name, content in (("first", first), ("second", second)):
        for part in reversed(key.split(".")):
            content = {part: content}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
        words += ["--config", str(tmp_path / f"{name}.yaml")]
    done = command(*words, "--print_config")
    assert done.code == 0, done.err
    found = yaml.safe_load(done.out)
    for part in key.split("."):
        found = found[part]
    assert found["class_path"] == second["class_path"]
    assert found["init_args"] == found["init_args"] | expected


def test_a_callback_in_the_place_of_another(command, tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    first = spec("lightning.pytorch.callbacks.EarlyStopping", monitor="a", patience=9, mode="max")
    second = spec("lightning.pytorch.callbacks.ModelCheckpoint", monitor="b")
    one.write_text(yaml.safe_dump({"trainer": {"callbacks": [first]}}))
    two.write_text(yaml.safe_dump({"trainer": {"callbacks": [second]}}))
    done = command(*BARE, "--config", one, "--config", two, "--print_config")
    (found,) = yaml.safe_load(done.out)["trainer"]["callbacks"]
    assert found["init_args"]["mode"] == "min"
    assert found["init_args"]["monitor"] == "b"


def test_a_module_keeps_what_was_given_and_takes_its_own_defaults(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "switched.py").write_text(
        "import torch\n"
        "from lightning.pytorch.cli import OptimizerCallable\n"
        "from oneshot_lit.methods import LanguageModelModule\n"
        "class One(LanguageModelModule):\n"
        "    def __init__(self, strength: float = 1.0, **kwargs):\n"
        "        super().__init__(**kwargs)\n"
        "class Two(LanguageModelModule):\n"
        "    def __init__(self, model_name_or_path: str, strength: float = 2.0, dtype: str = '',\n"
        "        optimizer: OptimizerCallable = lambda p: torch.optim.SGD(p, lr=0.5),\n"
        "        decoding=None):\n"
        "        super().__init__(model_name_or_path, optimizer=optimizer)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tmp_path / "one.yaml"
    config.write_text(
        yaml.safe_dump(
            {
                "model": spec("switched.One", model_name_or_path="checkpoints/small"),
                "data": {"class_path": "oneshot_lit.data.SafetyDataModule"},
            }
        )
    )
    words = ["fit", "--config", config, "--model", "switched.Two", "--print_config"]
    found = yaml.safe_load(command(*words).out)["model"]["init_args"]
    assert found["model_name_or_path"] == "checkpoints/small"
    assert found["strength"] == 2.0
    assert found["optimizer"]["class_path"] == "torch.optim.SGD"
    assert found["optimizer"]["init_args"]["lr"] == 0.5
    assert found["optimizer"]["init_args"]["weight_decay"] == 0
    found = yaml.safe_load(command(*words, "--model.strength", "3").out)["model"]["init_args"]
    assert found["strength"] == 3.0


def test_a_class_comes_before_its_arguments() -> None:
    words = "fit --a.b.c 1 --x=2 --a.b mine.Class --a.b.d 3 --config f --y=0.5".split()
    ordered = "fit --config f --x=2 --y=0.5 --a.b mine.Class --a.b.c 1 --a.b.d 3".split()
    assert typed_last(words) == ordered
    # Of two classes the later one counts, without the arguments of the earlier one.
    words = "fit --a.b One --a.b.c 1 --a.b=Two --a.b.d 2 --e.f 3 --e null".split()
    assert typed_last(words) == "fit --e null --a.b=Two --a.b.d 2".split()
    assert typed_last([]) == []
