"""Schedulers: functions that take an optimiser work, and what is missing is said in plain words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import yaml

from oneshot_lit.cli.fit import OneShotCLI

TORCH = "torch.optim.lr_scheduler"


def rates(root: Path) -> list[float]:
    lines = next(root.glob("logs/version_*/metrics.csv")).read_text().splitlines()
    column = lines[0].split(",").index("train/lr")
    return [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]


def expected(make, rate: float, steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler, found = make(optimizer), []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


COSINE = "transformers.get_cosine_schedule_with_warmup"


@pytest.mark.slow
def test_a_function_of_transformers_sets_the_rate(
    command, fit_words: list[str], tmp_path: Path
) -> None:
    words = [*fit_words, "--model.optimizer.lr", "0.001", "--model.lr_scheduler", COSINE]
    words += [
        "--model.lr_scheduler.num_warmup_steps=2",
        "--model.lr_scheduler.num_training_steps=6",
    ]
    assert command(*words).code == 0
    right = expected(
        lambda o: transformers.get_cosine_schedule_with_warmup(o, 2, 6), rate=1e-3, steps=6
    )
    assert rates(tmp_path / "run") == pytest.approx(right)
    saved = yaml.safe_load((tmp_path / "run" / "fit.yaml").read_text())
    shown = saved["model"]["init_args"]["lr_scheduler"]
    assert shown["class_path"] == "transformers.optimization.get_cosine_schedule_with_warmup"
    assert shown["init_args"]["num_training_steps"] == 6
    # What is recorded makes the same run.
    again = tmp_path / "again.yaml"
    again.write_text((tmp_path / "run" / "fit.yaml").read_text())
    assert command("fit", "--config", again, "--overwrite", "true").code == 0
    assert rates(tmp_path / "run") == pytest.approx(right)


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("transformers.get_constant_schedule", {}),
        ("transformers.optimization.get_linear_schedule_with_warmup",
         {"num_warmup_steps": 1, "num_training_steps": 4}),
        ("transformers.get_inverse_sqrt_schedule", {"num_warmup_steps": 2}),
        (f"{TORCH}.CosineAnnealingLR", {"T_max": 4}),
        ("OneCycleLR", {"max_lr": 0.1, "total_steps": 5}),
        ("users_schedules.halved", {"every": 2}),
    ],
)  # fmt: skip
def test_by_class_path(
    command, fit_words: list[str], tmp_path: Path, monkeypatch, path: str, arguments: dict
) -> None:
    (tmp_path / "users_schedules.py").write_text(
        "import torch\n"
        "def halved(optimizer: torch.optim.Optimizer, every: int):\n"
        "    return torch.optim.lr_scheduler.StepLR(optimizer, every, 0.5)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    seen: list[OneShotCLI] = []
    monkeypatch.setattr(OneShotCLI, "_run_subcommand", lambda cli, _: seen.append(cli))
    spec = {"class_path": path, "init_args": arguments} if arguments else path
    config = tmp_path / "schedule.yaml"
    config.write_text(yaml.safe_dump({"model": {"init_args": {"lr_scheduler": spec}}}))
    done = command(*fit_words, "--config", config)
    assert done.code == 0, done.err
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    made = seen[0].model.lr_scheduler(optimizer)
    assert isinstance(made, torch.optim.lr_scheduler.LRScheduler)
    assert made.optimizer is optimizer


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["StepLR"], "model.lr_scheduler: the following arguments are required: step_size"),
        ([f"{TORCH}.OneCycleLR"], "the following arguments are required: max_lr"),
        ([COSINE], "arguments are required: num_warmup_steps, num_training_steps"),
        ([f"{TORCH}.StepLR", "--model.lr_scheduler.step_siz=3"], "did you mean 'step_size'"),
        (["torch.optim.SGD"], "model.lr_scheduler: Expected 'torch.optim.SGD' to be a subclass of"),
        (["transformers.get_no_schedule"], "unknown class 'transformers.get_no_schedule'"),
        (["transformers.get_scheduler"], "'transformers.get_scheduler' to be a function that"),
        (["ReduceLROnPlateau"], "Give the full class path to avoid ambiguity"),
        (["lightning.pytorch.cli.ReduceLROnPlateau"], "arguments are required: monitor"),
        ([f"{TORCH}.ReduceLROnPlateau"], "give class_path: lightning.pytorch.cli.ReduceLROn"),
        ([f"{TORCH}.OneCycleLR", "--model.lr_scheduler.max_lr=0.1"],
         "model.lr_scheduler: You must define either total_steps OR"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    command, fit_words: list[str], words: list[str], message: str
) -> None:
    done = command(*fit_words, "--model.lr_scheduler", *words)
    assert done.code == 2
    assert message in done.error
    assert "NoneType" not in done.error


@pytest.mark.slow
def test_a_plateau_lowers_the_rate(command, fit_words: list[str], tmp_path: Path) -> None:
    key = "--model.lr_scheduler"
    words = [*fit_words, "--trainer.max_epochs", "4", "--model.optimizer.lr", "1e-6"]
    words += [key, "lightning.pytorch.cli.ReduceLROnPlateau", f"{key}.monitor", "train/loss"]
    # At so small a rate the loss stays as it is.
    words += [f"{key}.patience", "0", f"{key}.factor", "0.5", f"{key}.threshold", "0.9"]
    assert command(*words).code == 0
    found = rates(tmp_path / "run")
    assert found[0] == pytest.approx(1e-6)
    assert found[-1] == pytest.approx(0.25e-6)
    done = command(*words, f"{key}.monitor", "val/nothing", "--overwrite", "true")
    assert done.code == 2
    assert "val/nothing" in done.error
    assert "train/loss" in done.error
