"""A study: stages in order, each an ordinary fit and test with its own overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.config_files import check_config_files
from oneshot_lit.io.files import read_text
from oneshot_lit.io.runs import PRODUCTS
from oneshot_lit.io.shipped import or_shipped
from oneshot_lit.study.checks import mapping, number, stage_name
from oneshot_lit.study.expand import expand, fill
from oneshot_lit.study.repairs import Repair, parse_repairs
from oneshot_lit.study.sweeps import Sweep, parse_sweeps

_KEYS = ("name", "title", "root", "seed", "jobs", "test", "stages", "sweeps", "repairs", "goals")
# In the order in which a stage runs them.
VERBS = ("select", "fit", "edit", "test")


@dataclass(frozen=True)
class Command:
    """Config files of a command, and keys to set on top of them."""

    config: tuple[str, ...]
    set: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """One stage: where its model comes from, how it is trained (if at all) and tested.

    A stage that selects instances ranks candidates for its model; it trains and tests none.

    Attributes:
        name: The stage's name and folder.
        model: A model folder, a hub name, or the name of an earlier stage.
        commands: Verb (select, fit, edit or test) -> its command, in their order.
        control_of: The stage of which this one is the control; empty if of none.
    """

    name: str
    model: str
    commands: Mapping[str, Command]
    control_of: str = ""

    @property
    def makes_model(self) -> bool:
        """Whether the stage makes its own model."""
        return "fit" in self.commands or "edit" in self.commands


@dataclass(frozen=True)
class Study:
    """A whole study; see `configs/study/demo.yaml` for the file format."""

    name: str
    title: str
    root: Path
    seed: int
    stages: tuple[Stage, ...]
    file: Path
    sweeps: tuple[Sweep, ...] = ()
    repairs: tuple[Repair, ...] = ()
    jobs: int = 1

    @property
    def threads(self) -> int | None:
        """How many threads each command may use; None for no limit."""
        return max(1, (os.cpu_count() or 1) // self.jobs) if self.jobs > 1 else None

    def folder(self, stage: Stage) -> Path:
        """Return the stage's output folder."""
        return self.root / stage.name

    def arguments(self, stage: Stage, verb: str) -> list[str]:
        """Return the command line of one of a stage's commands, without the program's name."""
        command = stage.commands[verb]
        model = stage.name if verb == "test" and stage.makes_model else stage.model
        for source in self.stages:
            if source.name == model:
                own = str(self.folder(source) / PRODUCTS["fit"])
                model = own if source.makes_model else source.model
                break
        words = [verb]
        for file in command.config:
            words += ["--config", file]
        words += ["--seed_everything", str(self.seed)]
        words += ["--trainer.default_root_dir", str(self.folder(stage))]
        words += ["--model.model_name_or_path", model]
        for key, value in command.set.items():
            words += [f"--{key}", value if isinstance(value, str) else _flow(value)]
        return words


def _flow(value: Any) -> str:
    return str(yaml.safe_dump(value, default_flow_style=True)).replace("\n...", "").strip()


def load_study(path: Path, root: Path | None = None, seed: int | None = None) -> Study:
    """Read a study file.

    Args:
        path: The YAML file: name, title, root, seed, jobs, test, stages, sweeps, repairs, goals.
        root: Output folder that replaces the file's.
        seed: Seed that replaces the file's.

    Raises:
        OneShotError: naming the file and the key, if it is missing, unknown or malformed.
    """
    check_config_files(["--config", str(path)])
    top = mapping(yaml.safe_load(read_text(path)), str(path), _KEYS)
    # The upper limit is NumPy's.
    place = f"{path}: seed" if seed is None else "--seed"
    seed = number(top.get("seed", 0) if seed is None else seed, place, int, 0, 2**32 - 1)
    name = str(top.get("name", path.stem))
    root = Path(root or str(top.get("root", f"runs/{name}"))).expanduser()
    if blocked := [each for each in (root, *root.parents) if each.is_file()]:
        raise OneShotError(f"{path}: root: {blocked[0]} is a file; give a folder.")
    marks = {"seed": seed, "root": str(root)}
    stages: list[Stage] = []
    for written, body in mapping(top.get("stages"), f"{path}: stages").items():
        for filled_name, filled in expand(str(written), body, f"{path}: stages.{written}"):
            place = f"{path}: stages.{filled_name}"
            if filled_name in (stage.name for stage in stages):
                raise OneShotError(f"{place}: two stages have this name.")
            keys = mapping(filled, place, ("model", *VERBS, "each", "control_of"))
            if "select" not in keys and "test" in top:
                keys = {"test": top["test"], **keys}
            stages.append(_stage(filled_name, fill(keys, marks, place), stages, place))
    tested = [stage.name for stage in stages if "test" in stage.commands]
    if not tested:
        raise OneShotError(f"{path}: 'stages' must name at least one stage with a 'test'.")
    for stage in stages:
        if stage.control_of:
            place = f"{path}: stages.{stage.name}.control_of"
            stage_name(stage.control_of, tested, place, "stage with a test")
    names = [stage.name for stage in stages]
    return Study(
        name=name,
        title=str(top.get("title", name)),
        root=root,
        seed=seed,
        stages=tuple(stages),
        file=path,
        sweeps=parse_sweeps(top.get("sweeps"), names, f"{path}: sweeps"),
        repairs=parse_repairs(top.get("repairs"), top.get("goals"), names, str(path)),
        jobs=number(top.get("jobs", 1), f"{path}: jobs", int, 1, 1024),
    )


def _stage(name: str, keys: Mapping[str, Any], earlier: Sequence[Stage], place: str) -> Stage:
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise OneShotError(f"{place}: a stage's name is its folder; use letters, digits, - _ and .")
    if "model" not in keys:
        raise OneShotError(f"{place}: needs 'model': a folder, a hub name or an earlier stage.")
    model = str(keys["model"])
    # A stage that selects has no model.
    models = [stage.name for stage in earlier if "select" not in stage.commands]
    if "/" not in model and not Path(model).exists() and model not in models:
        hint = did_you_mean(model, models)
        raise OneShotError(f"{place}: model '{model}' is no earlier stage and no folder{hint}.")
    given = [verb for verb in VERBS if keys.get(verb) is not None]
    if given not in (["select"], ["test"], ["fit", "test"], ["edit", "test"]):
        raise OneShotError(
            f"{place}: needs 'test', here or for the whole study, alone or with 'fit' or 'edit'; "
            "'select' stands alone."
        )
    commands = {verb: _command(keys[verb], f"{place}.{verb}") for verb in given}
    if "control_of" in keys and "test" not in commands:
        raise OneShotError(f"{place}.control_of: a stage without a test has nothing to compare.")
    return Stage(name, model, commands, str(keys.get("control_of", "")))


def _command(raw: Any, place: str) -> Command:
    keys = {"config": raw} if isinstance(raw, (str, list)) else raw
    keys = mapping(keys, place, ("config", "set"))
    files = keys.get("config")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not files:
        raise OneShotError(f"{place}: needs 'config': one file or a list of them.")
    paths = [or_shipped(str(Path(str(file)).expanduser())) for file in files]
    try:
        # Check now, not hours later when the stage starts.
        check_config_files([f"--config={file}" for file in paths])
    except OneShotError as error:
        raise OneShotError(f"{place}: {error}") from error
    return Command(tuple(paths), mapping(keys.get("set") or {}, f"{place}.set"))
