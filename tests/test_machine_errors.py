"""A full disk, stood in for by a limit on file sizes: one line, and what was there stays."""

from __future__ import annotations

import errno
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from oneshot_lit.callbacks import AtomicCheckpointIO
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import name_full_disk


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
        with pytest.raises(OneShotError, match="here: disk full"):
            name_full_disk(wrapped, Path("here"))
    name_full_disk(RuntimeError("No space left on device"), Path("here"))
