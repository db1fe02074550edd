"""A study: stages in order, each an ordinary fit and test with its own overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.config_files import check_config_files
from oneshot_lit.io.files import read_text
from oneshot_lit.io.runs import PRODUCTS
from oneshot_lit.io.shipped import or_shipped
from oneshot_lit.study.checks import mapping, whole_number
from oneshot_lit.study.expand import expand, fill, require_filled
from oneshot_lit.study.repairs import Repair, parse_repairs
from oneshot_lit.study.stages import Command, Stage
from oneshot_lit.study.sweeps import Sweep, parse_sweeps

_KEYS = ("name", "title", "root", "seed", "jobs", "test", "stages", "sweeps", "repairs", "goals")


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

    def folder(self, stage: Stage) -> Path:
        """Return the stage's output folder."""
        return self.root / stage.name

    def arguments(self, stage: Stage, verb: str) -> list[str]:
        """Return the command line of one of a stage's commands, without the program's name."""
        command = stage.commands()[verb]
        model = stage.name if verb == "test" and stage.makes_model else stage.model
        source = next((s for s in self.stages if s.name == model), None)
        if source is not None:
            model = (
                str(self.folder(source) / PRODUCTS["fit"]) if source.makes_model else source.model
            )
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
    if not path.is_file():
        raise OneShotError(f"{path}: study file not found; see configs/study/.")
    check_config_files(["--config", str(path)])
    top = mapping(yaml.safe_load(read_text(path)), str(path), _KEYS)
    stages_raw = top.get("stages")
    if not isinstance(stages_raw, Mapping) or not stages_raw:
        raise OneShotError(f"{path}: 'stages' must name at least one stage.")
    chosen, place = (top.get("seed", 0), f"{path}: seed") if seed is None else (seed, "--seed")
    # The upper limit is NumPy's.
    chosen = whole_number(chosen, place, 0, 2**32 - 1)
    name = str(top.get("name", path.stem))
    given = top.get("root", f"runs/{name}") if root is None else root
    folder, place = Path(str(given)).expanduser(), f"{path}: root" if root is None else "--root"
    marks = {"seed": chosen, "root": str(folder)}
    default = _command(top.get("test"), f"{path}: test", marks)
    stages: list[Stage] = []
    for written, body in stages_raw.items():
        for filled_name, filled in expand(str(written), body, f"{path}: stages.{written}"):
            if filled_name in (s.name for s in stages):
                raise OneShotError(f"{path}: two stages are called '{filled_name}'.")
            stages.append(_stage(filled_name, filled, default, stages, path, marks))
    names = [s.name for s in stages]
    for output in [folder / each for each in names]:
        for above in (output, *output.parents):
            if above.exists() and not above.is_dir():
                raise OneShotError(f"{place}: {above} is a file; give a folder.")
    return Study(
        name=name,
        title=str(top.get("title", name)),
        root=folder,
        seed=chosen,
        stages=tuple(stages),
        file=path,
        sweeps=parse_sweeps(top.get("sweeps"), names, f"{path}: sweeps"),
        repairs=parse_repairs(top.get("repairs"), top.get("goals"), names, str(path)),
        jobs=whole_number(top.get("jobs", 1), f"{path}: jobs", 1, 1024),
    )


def _stage(
    name: str,
    body: Any,
    default: Command | None,
    earlier: Sequence[Stage],
    path: Path,
    marks: Mapping[str, Any],
) -> Stage:
    place = f"{path}: stages.{name}"
    fields = mapping(body, place, ("model", "fit", "edit", "test", "select", "each"))
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise OneShotError(f"{place}: a stage's name is its folder; use letters, digits, - _ and .")
    if "model" not in fields:
        raise OneShotError(f"{place}: needs 'model': a folder, a hub name or an earlier stage.")
    model = str(fill(fields["model"], marks))
    require_filled(model, f"{place}.model")
    # A stage that selects has no model.
    models = [s.name for s in earlier if s.select is None]
    if "/" not in model and not Path(model).exists() and model not in models:
        hint = did_you_mean(model, models)
        raise OneShotError(f"{place}: model '{model}' is no earlier stage and no folder{hint}.")
    fit, edit, test, select = (
        _command(fields.get(verb), f"{place}.{verb}", marks)
        for verb in ("fit", "edit", "test", "select")
    )
    if select is not None and any(c is not None for c in (fit, edit, test)):
        raise OneShotError(f"{place}: selects; 'fit' and 'test' belong to a stage of their own.")
    if fit is not None and edit is not None:
        raise OneShotError(f"{place}: has 'fit' and 'edit'; give each a stage of its own.")
    if select is None and (test := test or default) is None:
        raise OneShotError(f"{place}: needs 'test', here or for the whole study.")
    return Stage(name, model, fit, test, select, edit)


def _command(raw: Any, place: str, marks: Mapping[str, Any]) -> Command | None:
    if raw is None:
        return None
    fields = mapping(
        {"config": raw} if isinstance(raw, (str, list)) else raw, place, ("config", "set")
    )
    files = fields.get("config")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not files:
        raise OneShotError(f"{place}: needs 'config': one file or a list of them.")
    paths = [or_shipped(str(Path(str(file)).expanduser())) for file in files]
    try:
        # Check now, not hours later when the stage starts.
        check_config_files([f"--config={file}" for file in paths])
    except OneShotError as error:
        raise OneShotError(f"{place}: {error}") from error
    overrides = fill(mapping(fields.get("set") or {}, f"{place}.set"), marks)
    require_filled(overrides, f"{place}.set")
    return Command(tuple(paths), overrides)
