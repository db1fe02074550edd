"""What the machine refuses, in one line: a full disk, a port, a process that is gone."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from torch import distributed

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What torch's and safetensors' writers say, which drop the number.
_FULL_TEXTS = (
    "No space left on device",
    "file write failed",
    "File too large",
    "Disk quota exceeded",
    "os error 28",
    "os error 27",
    "os error 122",
)
# torch.save closes its archive after a failed write and reports only that its length is wrong.
_TORN = re.compile(r"unexpected pos \d+ vs \d+|PytorchStreamWriter failed writing")
_RENDEZVOUS = re.compile(
    r"EADDRINUSE|failed to listen|client socket has (failed|timed out)|clients joined"
    r"|failed to connect to|host not found|could not be resolved|Name or service not known"
)
_LOST = re.compile(
    r"closed by peer|Connection reset|Connection refused|Broken pipe|Socket closed"
    r"|gloo|NCCL|recvValue failed|Failed to recv|failed to connect|Connection was likely closed"
    r"|Timed out waiting|terminated with signal|MPI"
)


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the latest first."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def full_disk(error: BaseException) -> str | None:
    """Return the line for a write that the disk, a quota or a limit refused, else None."""
    for cause in causes(error):
        refused = isinstance(cause, OSError) and cause.errno in _FULL
        if not refused and not any(text in str(cause) for text in _FULL_TEXTS):
            continue
        found = (_place(each) for each in causes(error))
        place = next((each for each in found if each is not None), None)
        what = "disk full, or a quota or file size limit reached"
        return (
            f"{'' if place is None else f'{place}: '}{what}; earlier checkpoints and products are "
            "untouched; free some space and resume with --ckpt_path last."
        )
    return None


def _place(error: BaseException) -> str | None:
    """Return the file that an error, or the note of a writer here, names."""
    name = getattr(error, "filename", None)
    return None if name is None else str(Path(os.fsdecode(name)))


def unreachable(error: BaseException) -> str | None:
    """Return the line for processes that do not find each other at the start, else None."""
    if distributed.is_available() and distributed.is_initialized():
        return None
    for cause in causes(error):
        if isinstance(cause, RuntimeError) and _RENDEZVOUS.search(str(cause)):
            address = os.environ.get("MASTER_ADDR", "127.0.0.1")
            place = f"{address}:{os.environ.get('MASTER_PORT', '?')}"
            if "EADDRINUSE" in str(cause):
                return f"MASTER_PORT: {place} is in use; give another port, or leave it unset."
            return (
                f"MASTER_ADDR, MASTER_PORT: the processes did not meet at {place}; check that all "
                "are started, with the same address and port, and that no firewall is between."
            )
    return None


def lost_process(error: BaseException) -> str | None:
    """Return what a collective that failed for want of another process says, else None."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return None
    for cause in causes(error):
        known = isinstance(cause, distributed.DistError)
        if known or (isinstance(cause, RuntimeError) and _LOST.search(str(cause))):
            return "another process of the run ended or cannot be reached"
    return None
