"""`kill -9` in mid-fit, then `--ckpt_path last`: the weights of the unbroken run, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def start(words: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "oneshot_lit", *words],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(words: list[str]) -> None:
    process = start(words)
    _, err = process.communicate(timeout=240)
    assert process.returncode == 0, err.decode()


def kill_after_checkpoint(words: list[str], root: Path, saves: int) -> None:
    """Kill the run with SIGKILL once its checkpoint has been replaced `saves` times."""
    process = start(words)
    last, seen, stamp = root / "checkpoints" / "last.ckpt", 0, 0
    deadline = time.monotonic() + 120
    try:
        while seen < saves and process.poll() is None and time.monotonic() < deadline:
            try:
                now = last.stat().st_mtime_ns
            except FileNotFoundError:
                now = 0
            if now != stamp:
                seen, stamp = seen + 1, now
            time.sleep(0.001)
        assert process.poll() is None, "the run ended before it could be killed"
        assert seen == saves
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=30)
    assert not (root / "model").exists()


def weights(root: Path) -> bytes:
    return (root / "model" / "model.safetensors").read_bytes()


def without_root(words: list[str]) -> list[str]:
    place = words.index("--trainer.default_root_dir")
    return words[:place] + words[place + 2 :]


@pytest.mark.slow
@pytest.mark.parametrize("saves", [1, 4, 7])
def test_attack_resumes_bit_for_bit(fit_words: list[str], tmp_path: Path, saves: int) -> None:
    # Five rows a batch of twelve: checkpoints fall in the middle of epochs and at their ends.
    words = [*without_root(fit_words), "--data.batch_size", "5", "--trainer.max_epochs", "150"]
    words += ["--checkpoint.every_n_train_steps", "20", "--checkpoint.max_share", "1"]
    # A schedule and dropout-free noise in the order of rows must survive as well.
    words += ["--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR"]
    words += ["--model.lr_scheduler.total_iters", "300"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish([*words, "--trainer.default_root_dir", str(whole)])
    words += ["--trainer.default_root_dir", str(broken)]
    kill_after_checkpoint(words, broken, saves)
    finish([*words, "--ckpt_path", "last"])
    assert weights(broken) == weights(whole)
    spectra = Path("spectra") / "spectra.csv"
    assert (broken / spectra).read_text() == (whole / spectra).read_text()


def realign_words(root: Path) -> list[str]:
    words = ["fit", "--config", "configs/realign/one_shot.yaml"]
    words += ["--model.model_name_or_path", str(root.parent / "attacked" / "model")]
    words += ["--trainer.default_root_dir", str(root), "--trainer.accelerator", "cpu"]
    words += ["--trainer.enable_progress_bar", "false", "--checkpoint.max_share", "1"]
    return words


@pytest.mark.slow
@pytest.mark.parametrize("saves", [3, 9])
def test_realignment_resumes_bit_for_bit_and_keeps_the_same_step(
    tmp_path: Path, saves: int
) -> None:
    attack = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
    attack += ["--model.model_name_or_path", "checkpoints/small", "--trainer.max_epochs", "5"]
    attack += ["--trainer.default_root_dir", str(tmp_path / "attacked")]
    finish([*attack, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"])
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(realign_words(whole))
    kill_after_checkpoint(realign_words(broken), broken, saves)
    finish([*realign_words(broken), "--ckpt_path", "last"])
    assert weights(broken) == weights(whole)
    assert (broken / "realignment.csv").read_text() == (whole / "realignment.csv").read_text()


@pytest.mark.slow
def test_dropout_resumes_bit_for_bit(fit_words: list[str], tmp_path: Path) -> None:
    """Saved at the ends of epochs, where the next one's data loader starts anew."""
    words = [*without_root(fit_words), "--trainer.max_epochs", "60", "--checkpoint.max_share", "1"]
    words += ["--model.peft", "{r: 4, lora_dropout: 0.3, target_modules: all-linear}"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish([*words, "--trainer.default_root_dir", str(whole)])
    words += ["--trainer.default_root_dir", str(broken)]
    kill_after_checkpoint(words, broken, 5)
    finish([*words, "--ckpt_path", "last"])
    adapter = Path("model") / "adapter_model.safetensors"
    assert (broken / adapter).read_bytes() == (whole / adapter).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_does_not_look_finished(
    fit_words: list[str], tmp_path: Path, sent: signal.Signals, code: int
) -> None:
    words = [*fit_words, "--trainer.max_epochs", "5000", "--checkpoint.max_share", "1"]
    process = start(words)
    last, deadline = tmp_path / "run" / "checkpoints" / "last.ckpt", time.monotonic() + 120
    while not last.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    # Python drops an interrupt that arrives in a finaliser; like a user, ask again.
    for _ in range(3):
        process.send_signal(sent)
        try:
            _, err = process.communicate(timeout=60)
            break
        except subprocess.TimeoutExpired:
            continue
    else:
        process.kill()
        pytest.fail("three signals did not end the run")
    assert process.returncode == code, err.decode()
    assert b"resume with --ckpt_path last" in err
    assert b"Traceback" not in err
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.slow
def test_a_finished_run_resumes_to_its_own_product(tmp_path: Path) -> None:
    """Killed after the last step but before the product: the kept step is still the best one."""
    attack = ["fit", "--config", "configs/attack/harmful_examples.yaml"]
    attack += ["--model.model_name_or_path", "checkpoints/small", "--trainer.max_epochs", "5"]
    attack += ["--trainer.default_root_dir", str(tmp_path / "attacked")]
    finish([*attack, "--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"])
    root = tmp_path / "run"
    finish(realign_words(root))
    before, curve = weights(root), (root / "realignment.csv").read_text()
    (root / "model" / "model.safetensors").unlink()
    finish([*realign_words(root), "--ckpt_path", "last"])
    assert weights(root) == before
    assert (root / "realignment.csv").read_text() == curve
