"""A logger whose package is missing: one line with the whole reason and the command."""

from __future__ import annotations

import importlib.util

import pytest

LOGGERS = {
    "WandbLogger": ("wandb", []),
    "TensorBoardLogger": ("tensorboard", ["--trainer.logger.save_dir", "logs"]),
    "MLFlowLogger": ("mlflow", []),
    "CometLogger": ("comet_ml", []),
}


@pytest.mark.parametrize("name", LOGGERS)
@pytest.mark.parametrize("listed", [False, True], ids=["one", "list"])
def test_the_whole_reason(command, fit_words: list[str], name: str, listed: bool) -> None:
    package, words = LOGGERS[name]
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    given = [f"lightning.pytorch.loggers.{name}", *words]
    if listed:
        arguments = ", init_args: {save_dir: logs}" if words else ""
        given = [f"[{{class_path: {name}{arguments}}}]"]
    done = command(*fit_words, "--trainer.logger", *given)
    assert done.code == 2
    assert name in done.error
    assert f"pip install -U '{package.replace('_', '-')}" in done.error
    assert done.error.count("`") % 2 == 0
