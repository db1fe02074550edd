"""Run the stages of a study in order; finished ones are kept, a killed one is resumed."""

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

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.progress import TimeElapsedColumn as Elapsed
from rich.text import Text

from oneshot_lit.callbacks.run_checkpoint import CHECKPOINTS, LAST
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.runs import PRODUCTS, SELECTION_FILE
from oneshot_lit.methods.select.outcomes import CANDIDATES_FILE
from oneshot_lit.study.inputs import command_fingerprint
from oneshot_lit.study.schedule import Schedule, total
from oneshot_lit.study.spec import Study
from oneshot_lit.study.stages import Stage
from oneshot_lit.study.worker import last_line, run_logged, start_server

STAGE_FILE = "stage.json"
_PRODUCTS = PRODUCTS | {"select": SELECTION_FILE}
# Seconds between two looks at the logs of what runs.
_BETWEEN_LINES = 15.0
# A selection is a fit, too; only its product is another.
_COMMANDS = {"select": "fit", "fit": "fit", "test": "test"}


@dataclass
class _Running:
    """A command that has been started, or one whose product was there already.

    `before` is the product's stamp at its start, `said` the last line of its log that was shown.
    """

    stage: Stage
    verb: str
    state: str
    process: Any = None
    entry: dict[str, Any] = field(default_factory=dict)
    before: tuple[int, int] | None = None
    start: float = field(default_factory=time.monotonic)
    said: str = ""


@dataclass
class Runner:
    """Runs a study's stages.

    Args:
        study: What to run.
        console: Where progress is shown.
        fresh: Run every stage again.
        run_command: Runs a command line and returns its exit code.
        preload: Modules that the processes of commands import before they start.
    """

    study: Study
    console: Console
    fresh: bool = False
    run_command: Callable[[Sequence[str]], int] | None = None
    preload: Sequence[str] = ()
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Run what is not finished, as many commands side by side as the study's ``jobs``.

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
        running: dict[int, _Running] = {}
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(self.study.name, total=total(self.study.stages))
            try:
                while schedule:
                    while len(running) < self.study.jobs and (command := schedule.take()):
                        begun = self._begin(*command)
                        if begun.process is None:
                            self._say(begun)
                            schedule.end(begun.stage.name)
                            progress.advance(task)
                        else:
                            running[begun.process.sentinel] = begun
                    names = [f"{r.stage.name}: {r.verb}" for r in running.values()]
                    # Several names would leave no room for the clock.
                    several = f"{len(names)} commands" if len(names) > 1 else self.study.name
                    progress.update(task, description=names[0] if len(names) == 1 else several)
                    for sentinel in self._wait(running):
                        ended = running.pop(sentinel)
                        self._end(ended)
                        self._say(ended)
                        schedule.end(ended.stage.name)
                        progress.advance(task)
            except BaseException:
                self._stop(list(running.values()))
                raise

    def _wait(self, running: dict[int, _Running]) -> list[Any]:
        """Return what ends next; meanwhile, without a terminal, say how far it is now and then."""
        seconds = None if self.console.is_terminal else _BETWEEN_LINES
        while running:
            if ended := connection.wait(list(running), seconds):
                return ended
            for each in running.values():
                folder, name = self.folder(each.stage), f"{each.stage.name:<12} {each.verb:<6}"
                log = folder / f"{each.verb}.log"
                line = last_line(log) if log.exists() else ""
                if line != each.said:
                    self.console.print(Text(f"  {name} {line}"), soft_wrap=True)
                each.said = line
        return []

    def _stop(self, running: list[_Running]) -> None:
        """End what runs; what has ended well meanwhile counts, and so does the time of the rest."""
        for each in running:
            if each.process.exitcode is None:
                each.process.terminate()
        for each in running:
            each.process.join(10)
            try:
                self._end(each)
            except OneShotError:
                spent = float(each.entry["seconds"]) + time.monotonic() - each.start
                self._note(self.folder(each.stage), each.verb, each.entry | {"seconds": spent})

    def _say(self, ended: _Running) -> None:
        name, verb = ended.stage.name, ended.verb
        took = self.seconds[f"{name} {verb}"]
        self.console.print(Text(f"  {name:<12} {verb:<6} {ended.state} ({took:.0f} s)"))

    @property
    def threads(self) -> int | None:
        """How many threads a command has; None for as many as it likes."""
        jobs = self.study.jobs
        return max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 else None

    def folder(self, stage: Stage) -> Path:
        """Return the stage's output folder."""
        return self.study.root / stage.name

    def arguments(self, stage: Stage, verb: str) -> list[str]:
        """Return the command line of a stage's fit or test."""
        command = stage.commands()[verb]
        names = {s.name: s for s in self.study.stages}
        model = stage.model
        if verb == "test" and stage.fit is not None:
            model = stage.name
        if model in names:
            source = names[model]
            model = str(self.folder(source) / PRODUCTS["fit"]) if source.fit else source.model
        words = [_COMMANDS[verb]]
        for file in command.config:
            words += ["--config", file]
        words += ["--seed_everything", str(self.study.seed)]
        words += ["--trainer.default_root_dir", str(self.folder(stage))]
        words += ["--model.model_name_or_path", model]
        for key, value in command.set.items():
            words += [f"--{key}", value if isinstance(value, str) else _flow(value)]
        return words

    def _begin(self, stage: Stage, verb: str) -> _Running:
        """Start a command, unless its product is there already."""
        folder, key = self.folder(stage), f"{stage.name} {verb}"
        arguments = self.arguments(stage, verb)
        print_ = command_fingerprint(arguments)
        record = read_stage(folder).get(verb, {})
        same = record.get("fingerprint") == print_ and not self.fresh
        product = folder / _PRODUCTS[verb]
        if same and record.get("done") and product.exists():
            self.seconds[key] = float(record["seconds"])
            return _Running(stage, verb, "kept")
        trains = verb != "test"
        checkpoint = folder / CHECKPOINTS / LAST
        resumed = trains and same and checkpoint.exists()
        # What this study wrote earlier it may write again; anything else is another run's.
        owned = bool(record.get("owned")) or not product.exists()
        if trains and owned and not resumed:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
            if not same or self.fresh:
                # What other code or other inputs measured is not taken over.
                (folder / CANDIDATES_FILE).unlink(missing_ok=True)
        if resumed:
            arguments = [*arguments, "--ckpt_path", "last"]
        if owned and product.exists():
            arguments = [*arguments, "--overwrite", "true"]
        earlier = float(record.get("seconds", 0.0)) if resumed else 0.0
        entry = {"fingerprint": print_, "owned": owned, "done": False, "seconds": earlier}
        self._note(folder, verb, entry)
        log = folder / f"{verb}.log"
        log.unlink(missing_ok=True)
        process = self._context.Process(
            target=run_logged, args=(self.run_command, arguments, str(log), self.threads)
        )
        begun = _Running(
            stage, verb, "resumed" if resumed else "done", process, entry, _stamp(product)
        )
        process.start()
        return begun

    def _end(self, ended: _Running) -> None:
        """Check what a command came to, and note it.

        Raises:
            OneShotError: if it failed, or ended without its product.
        """
        folder, key = self.folder(ended.stage), f"{ended.stage.name} {ended.verb}"
        product, log = folder / _PRODUCTS[ended.verb], folder / f"{ended.verb}.log"
        ended.process.join()
        self._require_success(ended.process.exitcode, log, key)
        # A command that was terminated may end with code 0, too; an older product is not its own.
        if _stamp(product) in (None, ended.before):
            raise OneShotError(
                f"{self.study.file}: {key}: ended without writing {product}; "
                f"run the study again to go on (log: {log})"
            )
        seconds = float(ended.entry["seconds"]) + time.monotonic() - ended.start
        self.seconds[key] = seconds
        self._note(folder, ended.verb, ended.entry | {"done": True, "seconds": seconds})

    def _require_success(self, code: int, log: Path, key: str) -> None:
        if code == 0:
            return
        # 130 and 143 are what a command makes of Ctrl-C and SIGTERM.
        number = -code if code < 0 else code - 128 if code in (130, 143) else 0
        if number:
            # The command's own words, if any, are about resuming it by itself.
            what = f"{number} ({signal.strsignal(number)})"
            reason = f"ended by signal {what}; run the study again to go on"
        else:
            reason = last_line(log) if log.exists() else f"exit code {code}"
        failure = OneShotError(f"{self.study.file}: {key}: {reason} (log: {log})")
        # A fault of the program, or of a user's own code, is not one of the input.
        failure.code = 1 if code == 1 else failure.code
        raise failure

    def _note(self, folder: Path, verb: str, entry: dict[str, Any]) -> None:
        write_json_atomically(folder / STAGE_FILE, read_stage(folder) | {verb: entry})


def read_stage(folder: Path) -> dict[str, Any]:
    """Return what is noted about a stage's commands; {} if nothing is."""
    try:
        content = json.loads((folder / STAGE_FILE).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


def _stamp(product: Path) -> tuple[int, int] | None:
    """Return what changes whenever a product is written, or None without one."""
    try:
        stat = product.stat()
    except OSError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).replace("\n...", "").strip()
