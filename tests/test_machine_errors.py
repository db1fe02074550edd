"""A full disk, stood in for by a limit on file sizes: one line, and what was there stays."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import distributed

from oneshot_lit.callbacks import AtomicCheckpointIO
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.machine_errors import full_disk, unreachable


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Python ignores the signal of this limit, so writes raise."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [100, 5000, 300_000])
def test_a_checkpoint_that_does_not_fit_leaves_the_last_one(tmp_path: Path, size: int) -> None:
    target, saver = tmp_path / "last.ckpt", AtomicCheckpointIO()
    saver.save_checkpoint({"step": 1, "weights": torch.zeros(9)}, target)
    with (
        largest_file(size),
        pytest.raises(OneShotError, match=r"last\.ckpt: disk full.*--ckpt_path last"),
    ):
        saver.save_checkpoint({"step": 2, "weights": torch.zeros(500_000)}, target)
    assert torch.load(target, weights_only=True)["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_fit_whose_product_does_not_fit(command, fit_words: list[str], tmp_path: Path) -> None:
    words = [*fit_words, "--trainer.enable_checkpointing", "false", "--trainer.callbacks", "null"]
    # Larger than its configuration and scores, smaller than its weights.
    with largest_file(40_000):
        done = command(*words)
    assert done.code == 2
    assert f"{tmp_path / 'run' / 'model'}: disk full" in done.error
    assert not [path for path in (tmp_path / "run").iterdir() if "model" in path.name]


def test_a_fit_whose_checkpoint_does_not_fit(command, fit_words: list[str], tmp_path: Path) -> None:
    with largest_file(40_000):
        done = command(*fit_words, "--checkpoint.max_share", "1")
    assert done.code == 2
    assert f"{tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}: disk full" in done.error
    assert list((tmp_path / "run" / "checkpoints").iterdir()) == []


def test_what_the_system_refuses_is_known() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        wrapped = RuntimeError("unexpected pos 64 vs 0")
        wrapped.__context__ = OSError(number, "refused")
        assert "disk full" in (full_disk(wrapped, Path("here")) or "")
    assert full_disk(RuntimeError("No space left on device")) is None


def test_a_writer_that_drops_the_systems_error(tmp_path: Path) -> None:
    error = RuntimeError("I/O error")
    assert full_disk(error, tmp_path / "model") is None
    with largest_file(1000):
        line = full_disk(error, tmp_path / "model")
        assert full_disk(OneShotError("of another kind"), tmp_path / "model") is None
    assert f"{tmp_path / 'model'}: disk full" in (line or "")
    assert list(tmp_path.iterdir()) == []


def test_processes_that_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node0")
    monkeypatch.setenv("MASTER_PORT", "29500")
    late = distributed.DistStoreError(
        "Timed out after 11 seconds waiting for clients. 1/2 clients joined."
    )
    assert "the processes did not meet at node0:29500 (Timed out" in (unreachable(late) or "")
    assert unreachable(RuntimeError("Connection refused")) is None
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert unreachable(late) is None
