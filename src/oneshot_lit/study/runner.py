"""Run the commands of a study; finished ones are kept, a killed one is resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.text import Text

from oneshot_lit.callbacks.run_checkpoint import CHECKPOINTS, LAST
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.runs import PRODUCTS, SELECTION_FILE
from oneshot_lit.methods.job import STATE
from oneshot_lit.study.inputs import command_fingerprint
from oneshot_lit.study.schedule import Schedule
from oneshot_lit.study.spec import Study
from oneshot_lit.study.stages import Stage
from oneshot_lit.study.worker import last_line, run_logged, start_server

STAGE_FILE = "stage.json"
_OUTPUTS = PRODUCTS | {"select": SELECTION_FILE}
# Seconds between two looks at the logs of running commands.
_BETWEEN_LINES = 15.0


@dataclass
class _Running:
    """A command that has been started, or one with an output that was there already.

    `before` is the stamp of an output from before its start, `shown` the last line of its log that
    was printed.
    """

    stage: Stage
    verb: str
    state: str
    process: Any = None
    entry: dict[str, Any] = field(default_factory=dict)
    before: tuple[int, int] | None = None
    start: float = field(default_factory=time.monotonic)
    shown: str = ""


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
        self._context = start_server(self.preload)
        schedule = Schedule(self.study)
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            Elapsed(),
        )
        running: dict[Any, _Running] = {}
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(self.study.name, total=len(schedule))

            def end(ended: _Running) -> None:
                took = self.seconds[ended.stage.name][ended.verb]
                line = f"  {ended.stage.name:<12} {ended.verb:<6} {ended.state} ({took:.0f} s)"
                self.console.print(Text(line))
                schedule.end(ended.stage, ended.verb)
                progress.advance(task)

            try:
                while schedule:
                    while len(running) < self.study.jobs and (command := schedule.take()):
                        begun = self._begin(*command)
                        if begun.process is None:
                            end(begun)
                        else:
                            running[begun.process.sentinel] = begun
                    names = [f"{r.stage.name}: {r.verb}" for r in running.values()]
                    # Several names would leave no space for the clock.
                    several = f"{len(names)} commands" if names else self.study.name
                    progress.update(task, description=names[0] if len(names) == 1 else several)
                    for sentinel in self._wait(running):
                        ended = running.pop(sentinel)
                        self._end(ended)
                        end(ended)
            except BaseException:
                self._stop(list(running.values()))
                raise

    def _wait(self, running: dict[Any, _Running]) -> list[Any]:
        """Return the commands that end next; without a terminal, print progress meanwhile."""
        seconds = None if self.console.is_terminal else _BETWEEN_LINES
        while running and not (ended := connection.wait(list(running), seconds)):
            for each in running.values():
                log = self.study.folder(each.stage) / f"{each.verb}.log"
                line = last_line(log) if log.exists() else ""
                if line != each.shown:
                    text = Text(f"  {each.stage.name:<12} {each.verb:<6} {line}")
                    self.console.print(text, soft_wrap=True)
                each.shown = line
        return ended if running else []

    def _stop(self, running: Sequence[_Running]) -> None:
        """Stop the running commands; those that have succeeded in the meantime count."""
        for each in running:
            if each.process.exitcode is None:
                each.process.terminate()
        for each in running:
            each.process.join(10)
            try:
                self._end(each)
            except OneShotError:
                continue

    @property
    def threads(self) -> int | None:
        """How many threads a command may use; None for no limit."""
        jobs = self.study.jobs
        return max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None

    def _begin(self, stage: Stage, verb: str) -> _Running:
        """Start a command, unless its output is there already."""
        folder = self.study.folder(stage)
        output, log = folder / _OUTPUTS[verb], folder / f"{verb}.log"
        arguments = self.study.arguments(stage, verb)
        fingerprint = command_fingerprint(arguments)
        record = read_stage(folder).get(verb, {})
        same = record.get("fingerprint") == fingerprint and not self.fresh
        if same and record.get("done") and output.exists():
            self.seconds.setdefault(stage.name, {})[verb] = float(record["seconds"])
            return _Running(stage, verb, "kept")
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
        log.unlink(missing_ok=True)
        process = self._context.Process(
            target=run_logged, args=(self.run_command, arguments, str(log), self.threads)
        )
        state = "resumed" if resumed else "done"
        begun = _Running(stage, verb, state, process, entry, _stamp(output))
        process.start()
        return begun

    def _end(self, ended: _Running) -> None:
        """Check how a command ended, and note it.

        Raises:
            OneShotError: if it failed, or ended without its output.
        """
        folder = self.study.folder(ended.stage)
        output, log = folder / _OUTPUTS[ended.verb], folder / f"{ended.verb}.log"
        place = f"{self.study.file}: {ended.stage.name} {ended.verb}"
        ended.process.join()
        if code := ended.process.exitcode:
            failure = OneShotError(f"{place}: {_reason(code, log)} (log: {log})")
            # Code 1 is an error of the program or of a user's code, not a mistake in the input.
            failure.code = 1 if code == 1 else failure.code
            raise failure
        # A terminated command may also end with code 0, and the output may be an older one.
        if _stamp(output) in (None, ended.before):
            raise OneShotError(
                f"{place}: ended without writing {output}; run the study again to go on "
                f"(log: {log})"
            )
        seconds = time.monotonic() - ended.start
        self.seconds.setdefault(ended.stage.name, {})[ended.verb] = seconds
        _note(folder, ended.verb, ended.entry | {"done": True, "seconds": seconds})


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
    try:
        content = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _note(folder: Path, verb: str, entry: dict[str, Any]) -> None:
    write_json_atomically(folder / STAGE_FILE, read_stage(folder) | {verb: entry})


def _stamp(output: Path) -> tuple[int, int] | None:
    """Return a value that changes whenever the output is written; None without an output."""
    try:
        stat = output.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns
