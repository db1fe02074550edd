"""What a study is: stages in order, each an ordinary fit and test with its own overrides."""

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
from oneshot_lit.io.shipped import or_shipped
from oneshot_lit.study.expand import expand, fill, require_filled
from oneshot_lit.study.repairs import Repair, parse_repairs
from oneshot_lit.study.selections import Selections, parse_selections
from oneshot_lit.study.stages import Command, Stage
from oneshot_lit.study.sweeps import Sweep, parse_sweeps


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
    selections: Selections | None = None
    jobs: int = 1


_KEYS = (
    "name", "title", "root", "seed", "jobs", "test", "stages", "sweeps", "repairs", "goals",
    "selections",
)  # fmt: skip


def load_study(path: Path, root: Path | None = None, seed: int | None = None) -> Study:
    """Read a study file.

    Args:
        path: The YAML file: name, title, root, seed, jobs, test, stages, sweeps,
            repairs, goals, selections.
        root: Output folder in place of the file's.
        seed: Seed in place of the file's.

    Raises:
        OneShotError: naming the file and the key, for anything missing, unknown or misshapen.
    """
    if not path.is_file():
        raise OneShotError(f"{path}: study file not found; see configs/study/.")
    try:
        raw = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" line {mark.line + 1}" if mark is not None else ""
        raise OneShotError(f"{path}{place}: not YAML; mend it.") from error
    top = _mapping(raw, str(path), _KEYS)
    stages_raw = top.get("stages")
    if not isinstance(stages_raw, Mapping) or not stages_raw:
        raise OneShotError(f"{path}: 'stages' must name at least one stage.")
    chosen = _seed(top.get("seed", 0), f"{path}: seed") if seed is None else _seed(seed, "--seed")
    name = str(top.get("name", path.stem))
    if root is None:
        folder, place = Path(str(top.get("root", f"runs/{name}"))).expanduser(), f"{path}: root"
    else:
        folder, place = root.expanduser(), "--root"
    marks = {"seed": chosen, "root": str(folder)}
    default = _command(top.get("test"), f"{path}: test", marks)
    stages: list[Stage] = []
    for given, body in stages_raw.items():
        for filled_name, filled in expand(str(given), body, f"{path}: stages.{given}"):
            if filled_name in (s.name for s in stages):
                raise OneShotError(f"{path}: two stages are called '{filled_name}'.")
            stages.append(_stage(filled_name, filled, default, stages, path, marks))
    names = [s.name for s in stages]
    for stage in stages:
        _require_folder(folder / stage.name, place)
    return Study(
        name,
        str(top.get("title", name)),
        folder,
        chosen,
        tuple(stages),
        path,
        parse_sweeps(top.get("sweeps"), names, f"{path}: sweeps"),
        parse_repairs(top.get("repairs"), top.get("goals"), names, str(path)),
        parse_selections(top.get("selections"), stages, f"{path}: selections"),
        _jobs(top.get("jobs", 1), f"{path}: jobs"),
    )


def _jobs(raw: Any, place: str) -> int:
    if not isinstance(raw, int) or isinstance(raw, bool) or raw < 1:
        raise OneShotError(f"{place}: needs a whole number of at least 1, not '{raw}'.")
    return raw


def _seed(raw: Any, place: str) -> int:
    # YAML's true is an int to Python; the upper limit is NumPy's.
    number = int(raw) if isinstance(raw, str) and raw.isdecimal() else raw
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**32:
        raise OneShotError(f"{place}: needs a whole number from 0 to 4294967295, not '{raw}'.")
    return number


def _require_folder(folder: Path, place: str) -> None:
    """Refuse an output folder that is a file or lies below one."""
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise OneShotError(f"{place}: {path} is a file; give a folder.")


def _stage(
    name: str,
    body: Any,
    default: Command | None,
    earlier: Sequence[Stage],
    path: Path,
    marks: Mapping[str, Any],
) -> Stage:
    place = f"{path}: stages.{name}"
    fields = _mapping(body, place, ("model", "fit", "test", "select", "each"))
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
    if "select" in fields:
        if "fit" in fields or "test" in fields:
            raise OneShotError(
                f"{place}: selects; 'fit' and 'test' belong to a stage of their own."
            )
        select = _command(fields["select"], f"{place}.select", marks)
        if select is None:
            raise OneShotError(f"{place}.select: needs 'config': one file or a list of them.")
        return Stage(name, model, None, None, select)
    test = _command(fields.get("test"), f"{place}.test", marks) or default
    if test is None:
        raise OneShotError(f"{place}: needs 'test', here or for the whole study.")
    return Stage(name, model, _command(fields.get("fit"), f"{place}.fit", marks), test)


def _command(raw: Any, place: str, marks: Mapping[str, Any]) -> Command | None:
    if raw is None:
        return None
    if isinstance(raw, (str, list)):
        raw = {"config": raw}
    fields = _mapping(raw, place, ("config", "set"))
    files = fields.get("config")
    files = [files] if isinstance(files, str) else files
    if not isinstance(files, list) or not files:
        raise OneShotError(f"{place}: needs 'config': one file or a list of them.")
    paths = [or_shipped(str(Path(str(file)).expanduser())) for file in files]
    for file in paths:
        if not Path(file).is_file():
            raise OneShotError(f"{place}: config file {file} not found.")
        try:
            # Here, not when the stage's turn comes hours later.
            check_config_files(["--config", file])
        except OneShotError as error:
            raise OneShotError(f"{place}: {error}") from error
    overrides = _mapping(fields.get("set") or {}, f"{place}.set", None)
    filled = fill(overrides, marks)
    require_filled(filled, f"{place}.set")
    return Command(tuple(paths), filled)


def _mapping(raw: Any, place: str, known: tuple[str, ...] | None) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise OneShotError(f"{place}: must be a mapping of keys to values.")
    for key in raw:
        if known is not None and key not in known:
            raise OneShotError(
                f"{place}: unknown key '{key}'{did_you_mean(str(key), known)}; "
                f"the keys are {', '.join(known)}."
            )
    return raw
