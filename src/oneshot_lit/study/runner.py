"""Run the commands of a study; finished ones are kept, a killed one is resumed."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from multiprocessing import connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from oneshot_lit.callbacks.run_checkpoint import CHECKPOINTS, LAST
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.runs import PRODUCTS
from oneshot_lit.methods.job import STATE
from oneshot_lit.study.inputs import Key, command_fingerprint, needs
from oneshot_lit.study.spec import Stage, Study
from oneshot_lit.study.worker import last_line, run_logged, start_server

STAGE_FILE = "stage.json"
# Seconds between two looks at the logs of running commands.
_BETWEEN_LINES = 15.0


@dataclass
class _Started:
    """A command that was started, or one with an output that was there already.

    Attributes:
        stage: Its stage.
        verb: Its verb.
        folder: The stage's folder.
        state: How it ends, in a word.
        entry: What ``stage.json`` says of it.
        process: Its process; None for an output that is kept.
        before: When its output was last written before it began.
        start: When it began.
        shown: The last line of its log that was printed.
    """

    stage: Stage
    verb: str
    folder: Path
    state: str
    entry: dict[str, Any]
    process: Any = None
    before: int = 0
    start: float = field(default_factory=time.monotonic)
    shown: str = ""

    @property
    def log(self) -> Path:
        """The file with what it prints."""
        return self.folder / f"{self.verb}.log"

    def line(self, said: str) -> Text:
        """Return a line for the terminal."""
        return Text(f"  {self.stage.name:<12} {self.verb:<6} {said}")


@dataclass
class Runner:
    """Runs a study's stages.

    Args:
        study: What to run.
        console: Where progress is shown.
        fresh: Run every stage again.
        run_command: Runs a command line and returns its exit code.
        preload: Modules that the processes of commands import before they start.
        seconds: Stage -> verb -> seconds of the command, without the runs that it resumed.
    """

    study: Study
    console: Console
    fresh: bool = False
    run_command: Callable[[Sequence[str]], int] | None = None
    preload: Sequence[str] = ()
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def run(self) -> None:
        """Run all unfinished commands, at most ``jobs`` of the study at a time.

        Raises:
            OneShotError: with the failing command's own line and its log file.
        """
        context = start_server(self.preload)
        stages = {stage.name: stage for stage in self.study.stages}
        before = needs(self.study)
        order = list(before)
        waiting = TopologicalSorter(before)
        waiting.prepare()
        ready: list[Key] = []
        running: list[_Started] = []
        try:
            while waiting.is_active():
                ready = sorted([*ready, *waiting.get_ready()], key=order.index)
                if ready and len(running) < self.study.jobs:
                    name, verb = ready.pop(0)
                    command = self._start(context, stages[name], verb)
                    running.append(command)
                    ended = [command] if command.process is None else []
                else:
                    ended = self._wait(running)
                for each in ended:
                    running.remove(each)
                    self._end(each)
                    waiting.done((each.stage.name, each.verb))
        except BaseException:
            for each in running:
                each.process.terminate()
            for each in running:
                each.process.join(10)
            raise

    def _wait(self, running: Sequence[_Started]) -> list[_Started]:
        """Return the commands that end next; print how far all are meanwhile."""
        sentinels = [each.process.sentinel for each in running]
        while not (ready := connection.wait(sentinels, _BETWEEN_LINES)):
            for each in running:
                line = last_line(each.log) if each.log.exists() else ""
                if line != each.shown:
                    self.console.print(each.line(line), soft_wrap=True)
                each.shown = line
        return [each for each in running if each.process.sentinel in ready]

    def _start(self, context: Any, stage: Stage, verb: str) -> _Started:
        """Start a command, unless its output is there already."""
        folder = self.study.folder(stage)
        output = folder / PRODUCTS[verb]
        arguments = self.study.arguments(stage, verb)
        fingerprint = command_fingerprint(arguments)
        record = read_stage(folder).get(verb, {})
        same = record.get("fingerprint") == fingerprint and not self.fresh
        if same and record.get("done") and output.exists():
            return _Started(stage, verb, folder, "kept", record)
        saved = folder / (Path(CHECKPOINTS) / LAST if verb == "fit" else STATE)
        resumed = verb != "test" and same and saved.exists()
        # The study may replace its own output; any other output belongs to another run.
        owned = bool(record.get("owned")) or not output.exists()
        if verb != "test" and owned and not resumed:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        if resumed and verb == "fit":
            # A job finds its state by itself.
            arguments += ["--ckpt_path", "last"]
        if owned and output.exists():
            arguments += ["--overwrite", "true"]
        entry = {"fingerprint": fingerprint, "owned": owned, "done": False}
        _note(folder, verb, entry)
        state = "resumed" if resumed else "done"
        command = _Started(stage, verb, folder, state, entry, before=_written(output))
        command.log.unlink(missing_ok=True)
        command.process = context.Process(
            target=run_logged,
            args=(self.run_command, arguments, str(command.log), self.study.threads),
        )
        command.process.start()
        return command

    def _end(self, ended: _Started) -> None:
        """Check how a command ended, note it and show it.

        Raises:
            OneShotError: if it failed, or ended without its output.
        """
        if ended.process is not None:
            ended.process.join()
            place = f"{self.study.file}: {ended.stage.name} {ended.verb}"
            if code := ended.process.exitcode:
                failure = OneShotError(f"{place}: {_reason(code, ended.log)} (log: {ended.log})")
                # Code 1 is an error of the program or of a user's code, not one in the input.
                failure.code = 1 if code == 1 else failure.code
                raise failure
            # The output may also be an older one.
            if _written(output := ended.folder / PRODUCTS[ended.verb]) in (0, ended.before):
                raise OneShotError(
                    f"{place}: ended without writing {output}; run the study again to go on "
                    f"(log: {ended.log})"
                )
            ended.entry |= {"done": True, "seconds": time.monotonic() - ended.start}
            _note(ended.folder, ended.verb, ended.entry)
        seconds = float(ended.entry["seconds"])
        self.seconds.setdefault(ended.stage.name, {})[ended.verb] = seconds
        self.console.print(ended.line(f"{ended.state} ({seconds:.0f} s)"))


def _written(output: Path) -> int:
    """Return when a file or folder was last written; 0 without one."""
    return output.stat().st_mtime_ns if output.exists() else 0


def _reason(code: int, log: Path) -> str:
    """Return why a command failed: the signal that ended it, or its own last line."""
    # A command ends with 130 after Ctrl-C and with 143 after SIGTERM.
    number = -code if code < 0 else code - 128 if code in (130, 143) else 0
    if number:
        # The command's own message would explain how to resume the command alone.
        what = f"{number} ({signal.strsignal(number)})"
        return f"ended by signal {what}; run the study again to go on"
    return last_line(log) if log.exists() else f"exit code {code}"


def read_stage(folder: Path) -> dict[str, Any]:
    """Return the notes about a stage's commands; {} if there are none."""
    path = folder / STAGE_FILE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def _note(folder: Path, verb: str, entry: dict[str, Any]) -> None:
    write_json_atomically(folder / STAGE_FILE, read_stage(folder) | {verb: entry})
