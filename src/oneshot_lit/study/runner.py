"""Run the commands of a study; finished ones are kept, a killed one is resumed."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
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
from oneshot_lit.study.inputs import Key, command_marks, needs
from oneshot_lit.study.spec import Stage, Study
from oneshot_lit.study.worker import last_line, run_logged

STAGE_FILE = "stage.json"
# Seconds between two looks at the logs of running commands.
_BETWEEN_LINES = 30.0


@dataclass
class Runner:
    """Runs a study's stages.

    Args:
        study: What to run.
        console: Where progress is shown.
        context: Makes the processes of commands, see `worker.start_server`.
        fresh: Run every stage again.
        run_command: Runs a command line and returns its exit code.
        any_version: Keep finished stages of another version of this package or of others.
        seconds: Stage -> verb -> seconds of the command, without the runs that it resumed.
        other_version: The commands, such as ``attacked fit``, that were kept because of it.
    """

    study: Study
    console: Console
    context: Any
    fresh: bool = False
    run_command: Callable[[Sequence[str]], int] | None = None
    any_version: bool = False
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)
    other_version: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Run all unfinished commands, at most ``jobs`` of the study at a time.

        Raises:
            OneShotError: with the failing command's own line and its log file.
        """
        stages = {stage.name: stage for stage in self.study.stages}
        before = needs(self.study)
        order = list(before)
        waiting = TopologicalSorter(before)
        waiting.prepare()
        ready: list[Key] = []
        running: dict[Any, tuple[Key, Any, Iterator[Any]]] = {}
        try:
            while waiting.is_active():
                ready = sorted([*ready, *waiting.get_ready()], key=order.index)
                if ready and len(running) < self.study.jobs:
                    key = ready.pop(0)
                    command = self._command(stages[key[0]], key[1])
                    if (process := next(command, None)) is None:
                        waiting.done(key)
                    else:
                        running[process.sentinel] = (key, process, command)
                    continue
                ended = connection.wait(list(running), _BETWEEN_LINES)
                for sentinel in ended:
                    key, _, command = running.pop(sentinel)
                    next(command, None)
                    waiting.done(key)
                for (name, verb), *_ in [] if ended else list(running.values()):
                    log = self.study.folder(stages[name]) / f"{verb}.log"
                    self._say(name, verb, last_line(log) if log.exists() else "")
        except BaseException:
            for _, process, _ in running.values():
                process.terminate()
            for _, process, _ in running.values():
                process.join(10)
            raise

    def _command(self, stage: Stage, verb: str) -> Iterator[Any]:
        """Start a command and yield its process; when that has ended, check and note its output.

        If the output is there already, nothing is yielded.

        Raises:
            OneShotError: if the command failed, or ended without its output.
        """
        folder = self.study.folder(stage)
        output, log = folder / PRODUCTS[verb], folder / f"{verb}.log"
        arguments = self.study.arguments(stage, verb)
        marks = command_marks(arguments)
        record = read_stage(folder).get(verb, {})
        same = record.get("fingerprint") == marks["fingerprint"] and not self.fresh
        finished = record.get("done") and output.exists()
        if finished and (same or (self.any_version and record.get("inputs") == marks["inputs"])):
            if not same:
                self.other_version.append(f"{stage.name} {verb}")
            state = "kept" if same else "kept, made by another version"
            self._ended(stage, verb, state, record["seconds"])
            return
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
        entry = {**marks, "owned": owned, "done": False}
        _note(folder, verb, entry)
        before, start = _written(output), time.monotonic()
        log.unlink(missing_ok=True)
        process = self.context.Process(
            target=run_logged, args=(self.run_command, arguments, str(log), self.study.threads)
        )
        process.start()
        yield process
        process.join()
        place = f"{self.study.file}: {stage.name} {verb}"
        if code := process.exitcode:
            failure = OneShotError(f"{place}: {_reason(code, log)} (log: {log})")
            # Code 1 is an error of the program or of a user's code, not one in the input.
            failure.code = 1 if code == 1 else failure.code
            raise failure
        # The output may also be an older one.
        if _written(output) in (0, before):
            raise OneShotError(
                f"{place}: ended without writing {output}; run the study again to go on "
                f"(log: {log})"
            )
        seconds = time.monotonic() - start
        _note(folder, verb, entry | {"done": True, "seconds": seconds})
        self._ended(stage, verb, "resumed" if resumed else "done", seconds)

    def _ended(self, stage: Stage, verb: str, state: str, seconds: float) -> None:
        self.seconds.setdefault(stage.name, {})[verb] = seconds
        self._say(stage.name, verb, f"{state} ({seconds:.0f} s)")

    def _say(self, stage: str, verb: str, text: str) -> None:
        self.console.print(Text(f"  {stage:<12} {verb:<6} {text}"), soft_wrap=True)


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
