"""What the machine refuses, in one line: a full disk, a port, a process that is gone."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

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
# What a library says of a fault that no other process is the reason of.
_FAULT = re.compile(r"invalid usage|[Dd]uplicate GPU|out of memory|[Mm]ismatch|invalid argument")

# What Lightning says of a key without its name.
_REFUSALS = {
    "No supported gpu backend found": "trainer.accelerator: this machine has no GPU that can be "
    "used; give cpu or auto.",
    r"You requested gpu: (\[.*?\])\s+But your machine only has: (\[.*?\])": "trainer.devices: GPUs "
    "{0} are asked for, this machine has {1}; give fewer.",
    r"invalid strategy name: `strategy='(\S+\.\w+|\w+strategy)'`": "trainer.strategy: a class is "
    "given as '{{class_path: package.Class}}', with upper and lower case, not as {0}.",
}
_KEYS = {"Accelerator` can not run": "accelerator", "strategy": "strategy", "devices": "devices"}


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what led to it, the latest first."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        yield cause
        seen.add(id(cause))
        cause = cause.__cause__ or cause.__context__


def full_disk(error: BaseException, place: Path | None = None) -> str | None:
    """Return the line for a write that the disk, a quota or a limit refused, else None.

    Args:
        error: What the write raised.
        place: What was being written, if the error does not name it.
    """
    for cause in causes(error):
        refused = isinstance(cause, OSError) and cause.errno in _FULL
        if not refused and not any(text in str(cause) for text in _FULL_TEXTS):
            continue
        named = [getattr(each, "filename", None) for each in causes(error)]
        names = [os.fsdecode(name) for name in named if isinstance(name, (str, bytes, os.PathLike))]
        where = str(place or next(iter(names), ""))
        return (
            f"{where}{': ' if where else ''}disk full, or a quota or a limit on file sizes is "
            "reached; earlier checkpoints and products are untouched; free some space and run "
            "again, a fit with --ckpt_path last."
        )
    return None


def unreachable(error: BaseException) -> str | None:
    """Return the line for processes that do not find each other at the start, else None."""
    if _in_a_group():
        return None
    for cause in causes(error):
        if _of_the_network(cause):
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
    if not _in_a_group():
        return None
    for cause in causes(error):
        if _of_the_network(cause):
            text = str(cause)
            if _FAULT.search(text):
                return None
            said = (text.strip().splitlines() or [type(cause).__name__])[0][:200]
            return f"another process of the run ended or cannot be reached ({said})"
    return None


def _of_the_network(error: BaseException) -> bool:
    """Whether torch's communication between processes raised an error.

    It has exceptions of its own, but for gloo's, which are plain ones that begin with their place
    in gloo's source.
    """
    from torch import distributed

    if not distributed.is_available():
        return False
    place = str(error).partition("]")[0]
    gloo = type(error) is RuntimeError and place.startswith("[") and "/gloo/" in place
    return gloo or isinstance(error, distributed.DistError)


def _in_a_group() -> bool:
    # Imported here, as files are written without torch as well.
    from torch import distributed

    return distributed.is_available() and distributed.is_initialized()


def refusal(text: str) -> str:
    """Return what Lightning refuses, with the key that is to be mended."""
    for pattern, line in _REFUSALS.items():
        if found := re.search(pattern, " ".join(text.split())):
            return line.format(*found.groups())
    key = next((key for part, key in _KEYS.items() if part in text), None)
    return text if key is None else f"trainer.{key}: {text}"
