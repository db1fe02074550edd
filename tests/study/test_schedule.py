"""Commands run side by side only where none needs another's output."""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from rich.console import Console

from oneshot_lit.cli.study import _PRELOAD
from oneshot_lit.errors import OneShotError
from oneshot_lit.study.inputs import needs
from oneshot_lit.study.runner import Runner, read_stage
from oneshot_lit.study.spec import Command, Stage, Study

CONFIG = Command(("configs/attack/harmful_examples.yaml",))


def study(*stages: Stage, root: Path = Path("out"), jobs: int = 1) -> Study:
    return Study("s", "s", root, 0, stages, Path("s.yaml"), jobs=jobs)


def naming(text: str) -> Command:
    return Command(CONFIG.config, {"data.a": {"b": ["x", text]}})


def tuned(name: str, model: str, fit: Command) -> Stage:
    return Stage(name, model, {"fit": fit, "test": CONFIG})


def only_tested(name: str) -> Stage:
    return Stage(name, "checkpoints/small", {"test": CONFIG})


BROKEN = tuned("broken", "checkpoints/medium", CONFIG)
CHOICE = Stage("choice", "broken", {"select": CONFIG})
PICK = tuned("pick", "broken", naming("out/choice/selection.json"))


def test_a_command_needs_its_model_and_what_its_settings_name() -> None:
    alike = tuned("alike", "broken", naming("out/choices/x"))
    fit = ("broken", "fit")
    assert needs(study(BROKEN, CHOICE, PICK, alike)) == {
        fit: set(),
        ("broken", "test"): {fit},
        ("choice", "select"): {fit},
        ("pick", "fit"): {fit, ("choice", "select")},
        ("pick", "test"): {fit, ("choice", "select"), ("pick", "fit")},
        # A folder whose name starts like a stage's is another.
        ("alike", "fit"): {fit},
        ("alike", "test"): {fit, ("alike", "fit")},
    }


@pytest.mark.parametrize(
    ("text", "tests"),
    [
        ("./out//broken/../broken/model/", False),
        (str(Path("out/broken/model").absolute()), False),
        ('{"a": ["out/broken/model"]}', False),
        ("[out/broken/model]", False),
        # What its test writes.
        ("out/broken/outcomes.jsonl", True),
        ("out/broken", True),
    ],
)
def test_a_path_is_seen_however_it_is_spelled(text: str, tests: bool, tmp_path: Path) -> None:
    needed = {("broken", "fit"), ("broken", "test")} if tests else {("broken", "fit")}
    file = tmp_path / "f.yaml"
    file.write_text(yaml.safe_dump({"a": {"b": [text]}}))
    for other in (
        tuned("other", "checkpoints/small", naming(text)),
        tuned("other", "checkpoints/small", Command((str(file),))),
    ):
        assert needs(study(BROKEN, other))["other", "fit"] == needed


def test_the_order_is_the_studys_as_far_as_outputs_allow(tmp_path: Path) -> None:
    started = []

    class Noted(Ending):
        def start(self) -> None:
            started.append((self.log.parent.name, self.log.stem))
            super().start()

    context = SimpleNamespace(Process=Noted)
    config = {"data.a": {"b": str(tmp_path / "choice" / "selection.json")}}
    pick = tuned("pick", "broken", Command(CONFIG.config, config))
    given = study(BROKEN, CHOICE, pick, root=tmp_path)
    Runner(given, Console(file=io.StringIO()), context).run()
    assert started == [
        ("broken", "fit"),
        ("broken", "test"),
        ("choice", "select"),
        ("pick", "fit"),
        ("pick", "test"),
    ]


class Ending:
    """A command that ends a moment after its start, and counts how many run beside it."""

    running = most = 0

    def __init__(self, target: object, args: tuple[object, list[str], str, int | None]) -> None:
        self.log, self.exitcode = Path(args[2]), 0
        self.sentinel, self._writer = os.pipe()

    def start(self) -> None:
        Ending.running += 1
        Ending.most = max(Ending.most, Ending.running)
        threading.Timer(0.2, os.close, (self._writer,)).start()

    def join(self, timeout: float | None = None) -> None:
        Ending.running -= 1
        for name in ("selection.json", "metrics.json"):
            (self.log.parent / name).write_text("{}")
        (self.log.parent / "model").mkdir(exist_ok=True)

    def terminate(self) -> None:
        pass


@pytest.mark.parametrize(("jobs", "most"), [(1, 1), (2, 2), (9, 3)])
def test_as_many_commands_as_jobs_run_side_by_side(jobs: int, most: int, tmp_path: Path) -> None:
    stages = tuple(only_tested(name) for name in "abc")
    threads = []

    def process(target: object, args: tuple[object, list[str], str, int | None]) -> Ending:
        threads.append(args[3])
        return Ending(target, args)

    context = SimpleNamespace(Process=process)
    Ending.running = Ending.most = 0
    given = study(*stages, root=tmp_path / "out", jobs=jobs)
    runner = Runner(given, Console(file=io.StringIO()), context)
    runner.run()
    assert Ending.most == most
    assert {name: list(took) for name, took in runner.seconds.items()} == {
        n: ["test"] for n in "abc"
    }
    # Alone a command has all cores; beside others its share.
    share = max(1, (os.cpu_count() or 1) // jobs)
    assert threads == [None if jobs == 1 else share] * 3


@pytest.mark.parametrize("threads", [None, 2])
def test_a_command_takes_as_many_threads_as_its_share(threads: int | None, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    code = f"""
import sys, torch
import oneshot_lit.cli.main as program
from oneshot_lit.study.worker import run_logged
program.main = lambda words: print(*words, torch.get_num_threads())
run_logged(program.run_command, ["threads:"], {str(log)!r}, {threads})
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120
    )
    assert done.returncode == 0
    assert log.read_text() == f"threads: {threads or 1}\n"


def test_a_failing_command_ends_those_beside_it(tmp_path: Path) -> None:
    terminated = []

    class Lasting(Ending):
        def start(self) -> None:
            self.name = self.log.parent.name
            self.exitcode = 2 if self.name == "a" else None
            if self.name == "a":
                os.close(self._writer)

        def join(self, timeout: float | None = None) -> None:
            pass

        def terminate(self) -> None:
            terminated.append(self.name)

    context = SimpleNamespace(Process=Lasting)
    given = study(*map(only_tested, "abc"), root=tmp_path / "out", jobs=2)
    with pytest.raises(OneShotError, match="a test: "):
        Runner(given, Console(file=io.StringIO()), context).run()
    assert terminated == ["b"]
    assert not read_stage(tmp_path / "out" / "b")["test"]["done"]
    assert not (tmp_path / "out" / "c").exists()


def test_a_fresh_selection_takes_no_state_over(tmp_path: Path) -> None:
    context = SimpleNamespace(Process=Ending)
    config = Command(("configs/select/brute_force.yaml",))
    stage = Stage("a", "checkpoints/small", {"select": config})
    given = study(stage, root=tmp_path / "out")
    Runner(given, Console(file=io.StringIO()), context).run()
    state = tmp_path / "out" / "a" / "checkpoints" / "job.ckpt"
    state.parent.mkdir()
    state.write_text("")
    Runner(given, Console(file=io.StringIO()), context).run()
    assert state.exists()
    Runner(given, Console(file=io.StringIO()), context, fresh=True).run()
    assert not state.exists()


def test_processes_start_with_their_modules_imported(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from oneshot_lit.study.worker import start_server\n"
        "CHECK = 'import sys; sys.exit(\"colorsys\" not in sys.modules)'\n"
        "if __name__ == '__main__':\n"
        "    process = start_server(['colorsys']).Process(target=exec, args=(CHECK,))\n"
        "    process.start()\n"
        "    process.join()\n"
        "    raise SystemExit(process.exitcode)\n"
    )
    assert subprocess.run([sys.executable, program], timeout=120).returncode == 0


@pytest.mark.parametrize("module", _PRELOAD)
def test_the_imported_modules_exist(module: str) -> None:
    # The server passes over a name that it cannot import, and each command then imports by itself.
    assert importlib.util.find_spec(module) is not None
