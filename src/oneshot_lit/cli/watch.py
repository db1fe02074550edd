"""Runs of several processes: if one fails, all stop, and one process reports why.

Lightning starts a process for every device but the first, and kills all of them without a message
if one fails. If another launcher started the processes (torchrun, SLURM), it stops the others.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

# The environment variable with the id of the process that started a child.
_PARENT = "ONESHOT_LIT_PARENT"
_PR_SET_PDEATHSIG = 1
# Seconds to wait: the main thread may know why a child ended, and a child why a collective failed.
_MAIN_THREAD_FIRST, _CHILDREN_FIRST = 1.0, 5.0

_owner = 0
_terminated = False
_observer: _Observer | None = None


def begin() -> None:
    """Watch the processes of a run, and let them end with this one."""
    from lightning.fabric.strategies.launchers import subprocess_script as of_jobs
    from lightning.pytorch.strategies.launchers import subprocess_script
    from lightning.pytorch.trainer.connectors import signal_connector

    global _owner, _terminated, _observer
    _owner, _terminated, _observer = os.getpid(), False, None
    for launcher in (subprocess_script, of_jobs):
        setattr(launcher, "_launch_process_observer", _observe)  # noqa: B010
    # Lightning's own handler sends a message while other collectives may be running.
    setattr(signal_connector._SignalConnector, "_sigterm_notifier_fn", _on_sigterm)  # noqa: B010
    if "LOCAL_RANK" not in os.environ:
        os.environ[_PARENT] = str(os.getpid())
    elif os.environ["LOCAL_RANK"] != "0" and _PARENT in os.environ:
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ[_PARENT]):
            os._exit(1)


def terminated() -> bool:
    """Whether SIGTERM has asked this process to end."""
    return _terminated


def rank() -> int:
    """Return the rank among all processes, as far as the environment tells."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


def may_speak(code: int, expected: bool = True) -> bool:
    """Whether this process reports why it ends: one report is enough, the first process's first.

    Args:
        code: The exit code.
        expected: False for an exception that the loss of another process may have caused.
    """
    if rank() > 0:
        # If the first process fails in the same way, it ends this one; signals reach it, too.
        time.sleep(3 + 0.75 * rank())
        return code <= 2
    if _observer is not None and not expected:
        time.sleep(_CHILDREN_FIRST)
    return _observer is None or _observer.said.acquire(blocking=False)


def leave(code: int) -> NoReturn:
    """End this process and its children; one that failed may hang in its process group."""
    children = _observer.children if _observer is not None else ()
    for child in children:
        if code == 0:
            # They only need to clean up.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(60)
        child.kill()
    of_several = _observer is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1
    if code and (of_several or rank() > 0):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class _Observer(threading.Thread):
    """Ends the run when a child has failed; whoever reports why takes the lock `said`."""

    def __init__(self, children: Sequence[subprocess.Popen[bytes]]) -> None:
        super().__init__(daemon=True, name="children")
        self.children, self.said = children, threading.Lock()

    def run(self) -> None:
        while not any(codes := [child.poll() for child in self.children]):
            time.sleep(0.25)
        time.sleep(_MAIN_THREAD_FIRST)
        if not self.said.acquire(blocking=False):
            return
        number, code = min(((n, c) for n, c in enumerate(codes, 1) if c), key=lambda each: each[1])
        # A child that ends with 2 has reported a mistake itself.
        if code != 2:
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
            line = f"process {number} of the run ended ({how}), and the others were stopped"
            print(f"oneshot-lit: error: {line}; resume with --ckpt_path last.", file=sys.stderr)
        leave(code if code > 0 else 1)


def _observe(children: Sequence[subprocess.Popen[bytes]]) -> None:
    global _observer
    _observer = _Observer(children)
    _observer.start()


def _on_sigterm(connector: Any, signum: int, _: Any) -> None:
    """Take the place of Lightning's handler: note the signal and pass it on."""
    global _terminated
    if os.getpid() != _owner:
        # A worker of a data loader, forked with this handler.
        os._exit(128 + signum)
    launcher = connector.trainer.strategy.launcher
    if launcher is not None and not connector.received_sigterm:
        launcher.kill(signum)
    _terminated = connector.received_sigterm = True
