"""Only torch's own communication errors mean a lost process; others keep their traceback."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import distributed

from oneshot_lit.io.machine_errors import lost_process, unreachable

TEXTS = (
    "NCCL is not what this metric needs",
    "my table lacks a column gloo",
    "Connection reset by the annotation server",
    "failed to connect to the reward model: Connection refused",
    "worker terminated with signal 9",
    "Timed out waiting for the label service",
    "MPI_Comm is unknown",
    "[row 3] see docs/gloo/readme",
)


class Mine(Exception):
    """An exception of a user's own."""


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, Mine, OSError])
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_alone_tells_nothing(
    text: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unreachable(kind(text)) is None
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    assert lost_process(kind(text)) is None


@pytest.mark.parametrize(
    "error",
    [
        distributed.DistBackendError("NCCL error: remote process exited"),
        distributed.DistNetworkError("recvValue failed on SocketImpl"),
        distributed.DistStoreError("wait timeout after 5000ms"),
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] Read error "
            "[127.0.0.1]:29360: Connection reset by peer."
        ),
        RuntimeError(
            "[/pytorch/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting "
            "5000ms for recv operation to complete"
        ),
    ],
)
def test_what_torch_raises_is_known(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    wrapped = ValueError("while training")
    wrapped.__cause__ = error
    for each in (error, wrapped):
        assert "another process of the run ended" in (lost_process(each) or "")


@pytest.mark.slow
def test_a_users_error_that_mentions_nccl_shows_its_traceback(
    fit_words: list[str], tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text(
        "from oneshot_lit.methods import HarmfulFineTuningModule\n\n\n"
        "class Mine(HarmfulFineTuningModule):\n"
        "    def training_step(self, batch, batch_idx):\n"
        '        raise RuntimeError("NCCL is not what this metric needs")\n'
    )
    words = [*fit_words, "--model.class_path", "mine.Mine", "--trainer.strategy", "ddp"]
    done = run([*words, "--trainer.devices", "1"], tmp_path)
    assert done.returncode == 1
    assert "another process" not in done.stderr
    assert "Traceback" in done.stderr
    assert 'mine.py", line 6, in training_step' in done.stderr


def run(words: list[str], folder: Path) -> Any:
    command: Callable[..., Any] = subprocess.run
    code = f"import sys; sys.path.insert(0, {str(folder)!r}); from oneshot_lit.cli.main import run"
    return command(
        [sys.executable, "-c", f"{code}; run()", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
