"""What the machine or a strategy cannot do is one line, before any process is started."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

CPU_ZERO = "{class_path: oneshot_lit.strategies.HFDeepSpeedStrategy, init_args: {stage: 2}}"


@pytest.fixture(autouse=True)
def _start_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a process is started")

    monkeypatch.setattr(_SubprocessScriptLauncher, "launch", refuse)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--trainer.strategy", "fsdp"], "The strategy `fsdp` requires a GPU"),
        (["--trainer.strategy", "oneshot_lit.strategies.HFDeepSpeedStrategy"],
         "invalid strategy name: `strategy='oneshot_lit.strategies."),
        (["--trainer.strategy",
          "{class_path: DDPStrategy, init_args: {process_group_backend: 1, timeout: x}}"],
         "invalid strategy name: `strategy='{class_path: ddpstrategy"),
    ],
)  # fmt: skip
def test_a_strategy_that_cannot_run(
    command, fit_words: list[str], words: list[str], message: str
) -> None:
    done = command(*fit_words, "--trainer.devices", "2", *words)
    assert done.code == 2
    assert message in done.error


def test_more_devices_than_there_are(command, fit_words: list[str]) -> None:
    more = str(torch.cuda.device_count() + 1)
    done = command(*fit_words, "--trainer.accelerator", "gpu", "--trainer.devices", more)
    assert done.code == 2
    # Lightning's own words.
    assert "No supported gpu backend found" in done.error or "requested gpu" in done.error


def test_more_processes_than_devices(
    command, fit_words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.is_torchelastic_launched", lambda: True)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    done = command(*fit_words, "--trainer.devices", "1")
    assert done.code == 2
    # Lightning's own words.
    assert "`devices=1`" in done.error
    assert "does not match the world size (2)" in done.error


def test_a_strategy_whose_package_is_not_installed(
    command, fit_words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    done = command(*fit_words, "--trainer.strategy", CPU_ZERO)
    assert done.code == 2
    assert "trainer.strategy needs deepspeed, which is not installed" in done.error
