"""How a run of several processes ends: all of them, soon, and with one line that says why.

Lightning starts a process for every device but the first. One that is killed leaves the others
waiting in a collective, so a thread of each watches: the first process its children, a child its
parent. Where another launcher started the processes (torchrun, SLURM), that one stops them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, NoReturn

from lightning.pytorch.strategies.launchers import subprocess_script
from lightning.pytorch.trainer.connectors import signal_connector

# Set for the children, who inherit it: the process that starts them and watches them.
PARENT = "ONESHOT_LIT_PARENT"
_POLL = 0.25
# Until what holds the main thread is not waited for any longer after a signal.
_AFTER_SIGNAL = 10.0
# For the watcher, or another launcher, to tell the reason before a failed collective is reported.
_BEFORE_LOST = 5.0
# For the first process to tell the same mistake; later ranks wait longer, so that one tells it.
_BEFORE_MISTAKE, _BETWEEN_RANKS = 3.0, 0.75
_STOPPED = {-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT}

_advice = "run it again"
_said = threading.Lock()
_heard: int | None = None
_owner = 0
_watcher: _Watcher | None = None


def begin(command: str) -> None:
    """Watch the processes of a command from here on; `end` must follow."""
    global _advice, _heard, _owner, _said, _watcher
    _heard, _owner, _said, _watcher = None, os.getpid(), threading.Lock(), None
    _advice = "resume with --ckpt_path last" if command == "fit" else "run it again"
    setattr(subprocess_script, "_launch_process_observer", _watch_children)  # noqa: B010
    # The original sends a message in the signal's handler, in the midst of other collectives.
    setattr(signal_connector._SignalConnector, "_sigterm_notifier_fn", _on_sigterm)  # noqa: B010
    if "LOCAL_RANK" not in os.environ:
        os.environ[PARENT] = str(os.getpid())
    elif os.environ["LOCAL_RANK"] != "0" and PARENT in os.environ:
        _start(_Watcher(parent=int(os.environ[PARENT])))


def end(code: int) -> None:
    """Let no process outlive the command, which ends with this exit code."""
    watcher = _watcher
    if watcher is None:
        return
    watcher.leaving = True
    if code == 0:
        # They have no product to write, only to clean up.
        watcher.wait_for_children(60)
    watcher.stop_children()
    if code == 0:
        watcher.over = True


def leave(code: int) -> NoReturn:
    """End this process; a failed one of several may hang if it leaves the group in good order."""
    if code and (_watcher is not None or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        _exit(code)
    sys.exit(code)


def signalled() -> int | None:
    """Return the signal that asked this process to end, if one did."""
    return _heard


def whose(line: str) -> str:
    """Return a line with the process that says it, unless that is the first."""
    return line if (number := rank()) == 0 else f"process {number}: {line}"


def hold_back(code: int) -> bool:
    """Whether this process shall tell why it ends: of those that fail alike only the first does.

    A process that is not the first waits here, and is ended if another one tells.
    """
    if rank() > 0:
        if code > 2:
            # A signal has reached the first process, too.
            return False
        local = int(os.environ.get("LOCAL_RANK", "1"))
        time.sleep(_BEFORE_MISTAKE + _BETWEEN_RANKS * max(0, local - 1))
    return _watcher is None or _said.acquire(blocking=False)


def await_reason() -> None:
    """Give the watcher, or the launcher, the time to say why a collective failed and to end us."""
    if signalled() is None:
        time.sleep(_BEFORE_LOST)


def rank() -> int:
    """Return the rank among all processes, as far as it is known yet."""
    lightning: Any = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if lightning is not None and lightning.rank_zero_only.rank:
        return int(lightning.rank_zero_only.rank)
    for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) or int(os.environ.get("NODE_RANK", "0"))
    # The first process of a further node, before it has started the others.
    return int(os.environ.get("NODE_RANK", "0"))


def advice() -> str:
    """Return what to do after the end."""
    return _advice


class _Watcher(threading.Thread):
    """Ends this process if another one of the run has ended, or if a signal is not obeyed."""

    def __init__(
        self, children: Sequence[subprocess.Popen[bytes]] = (), parent: int | None = None
    ) -> None:
        super().__init__(daemon=True, name="watch")
        self.children, self.parent = children, parent
        # Lightning removes the variable when a run ends.
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self.first = int(os.environ.get("NODE_RANK", "0")) * (len(children) + 1)
        # The main thread is about to end this process by itself, or has ended its work well.
        self.leaving = self.over = False
        self._deadline: float | None = None
        self._signals, written = os.pipe()
        os.set_blocking(written, False)
        # Unlike a handler this hears a signal even while the main thread waits for a message.
        with contextlib.suppress(ValueError):
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=_forget_signals)

    def run(self) -> None:
        """Look at the others four times a second."""
        while not self.over:
            self._listen(_POLL)
            if self._deadline is not None and time.monotonic() > self._deadline:
                self._obey()
            if self.parent is not None:
                self._look_at_parent()
            elif not self.leaving:
                self._look_at_children()

    def wait_for_children(self, seconds: float) -> None:
        """Wait until all children have ended."""
        ends = time.monotonic() + seconds
        while any(child.poll() is None for child in self.children) and time.monotonic() < ends:
            time.sleep(0.02)

    def stop_children(self) -> None:
        """Kill the children that live; SIGTERM does not reach one that waits in a collective."""
        for child in self.children:
            child.kill()
        self.wait_for_children(5)

    def _listen(self, seconds: float) -> None:
        global _heard
        if not select.select([self._signals], [], [], seconds)[0]:
            return
        got = [n for n in os.read(self._signals, 64) if n in (signal.SIGTERM, signal.SIGINT)]
        if got and self._deadline is None:
            _heard, self._deadline = got[0], time.monotonic() + _AFTER_SIGNAL

    def _obey(self) -> None:
        assert _heard is not None
        what = "terminated" if _heard == signal.SIGTERM else "interrupted"
        self._say("" if self.parent is not None else f"{what}; {_advice}.")
        self.stop_children()
        _exit(128 + _heard)

    def _look_at_children(self) -> None:
        codes = {n: child.poll() for n, child in enumerate(self.children, start=1)}
        failed = {n: code for n, code in codes.items() if code}
        if not failed or self._deadline is not None:
            return
        # Those that were killed come first: others may have failed for want of them.
        number, code = min(failed.items(), key=lambda each: each[1])
        if code in _STOPPED and rank() == 0:
            # Whoever stopped it may be about to stop this process as well.
            self._listen(2)
            if self._deadline is not None:
                return
        self.stop_children()
        # A child that ends with 2 has told its mistake.
        how = f"killed by {_name(-code)}" if code < 0 else f"exit code {code}"
        self._say("" if code == 2 else _gone(self.first + number, self.size, how))
        _exit(code if code > 0 else 1)

    def _look_at_parent(self) -> None:
        if os.getppid() == self.parent:
            return
        if self._deadline is None and not self.leaving and os.environ["LOCAL_RANK"] == "1":
            self._say(_gone(self.first, self.size))
        _exit(1 if _heard is None else 128 + _heard)

    def _say(self, line: str) -> None:
        if _said.acquire(blocking=False) and line:
            print(f"oneshot-lit: error: {line}", file=sys.stderr, flush=True)


def _gone(number: int, size: int, how: str = "") -> str:
    how = f" ({how})" if how else ""
    return f"process {number} of {size} ended{how}; the others were stopped; {_advice}."


def _name(number: int) -> str:
    try:
        return f"signal {number}, {signal.Signals(number).name}"
    except ValueError:
        return f"signal {number}"


def _start(watcher: _Watcher) -> None:
    global _watcher
    _watcher = watcher
    watcher.start()


def _watch_children(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Take the place of Lightning's observer, which kills this process without a word."""
    _start(_Watcher(children=children))


def _on_sigterm(connector: Any, signum: int, _: Any) -> None:
    """Take the place of Lightning's handler: note the signal and pass it on."""
    global _heard
    if os.getpid() != _owner:
        # A worker of a data loader, forked with this handler.
        os._exit(128 + signum)
    launcher = connector.trainer.strategy.launcher
    if launcher is not None and not connector.received_sigterm:
        launcher.kill(signum)
    _heard, connector.received_sigterm = signum, True


def _forget_signals() -> None:
    """Keep the signals of forked workers out of this process's pipe."""
    with contextlib.suppress(ValueError):
        signal.set_wakeup_fd(-1)


def _exit(code: int) -> NoReturn:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
