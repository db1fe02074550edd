"""What a result comes from: hashes of the package, of other code that a config names, of files."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterable
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

import oneshot_lit
from oneshot_lit.errors import causes

# Larger files count by size and time: hashing a 70B model would take longer than some stages.
_HASHED_WHOLE = 256 * 2**20


@cache
def source_hash() -> str:
    """Return a hash of the package's own code: a changed method is a changed input."""
    package = Path(oneshot_lit.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        # How results are shown does not change them.
        if file.relative_to(package).parts[0] not in ("study", "plots"):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def content_hash(path: Path) -> str:
    """Return a hash of a file, or of all files in a folder with their names."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        stat = file.stat()
        digest.update(str(file.relative_to(path)).encode())
        if stat.st_size > _HASHED_WHOLE:
            digest.update(f"{stat.st_size} {stat.st_mtime_ns}".encode())
        else:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def named_code(names: Iterable[str]) -> dict[str, str]:
    """Return what identifies the code behind dotted names, such as ``my_package.modules.Mine``.

    That is each file of a user's package, and of every other user's package that they import.
    Nothing is imported. Installed packages and this one (see `source_hash`) are left out.

    Args:
        names: Dotted names; only the first part of each matters.

    Returns:
        File -> hash of its content.
    """
    identifiers: dict[str, str] = {}
    waiting = {name.partition(".")[0] for name in names}
    seen = {"oneshot_lit", *sys.stdlib_module_names}
    while waiting - seen:
        top = min(waiting - seen)
        seen.add(top)
        for file in _own_files(top):
            content = file.read_bytes()
            identifiers[str(file)] = hashlib.sha256(content).hexdigest()[:16]
            waiting |= _imported(content)
    return identifiers


def is_users_file(place: Path) -> bool:
    """Whether a file is a user's own: not of this package, an installed one or Python itself."""
    package = Path(oneshot_lit.__file__).parent
    return place.is_absolute() and not place.is_relative_to(package) and not _is_installed(place)


def _own_files(top: str) -> list[Path]:
    """Return the Python files of a user's module or package; none for one that is installed."""
    spec = _spec(top)
    if spec is None:
        return []
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    places = folders or ([Path(spec.origin)] if spec.origin and spec.has_location else [])
    if any(_is_installed(place) for place in places):
        return []
    files = {
        file for place in places for file in ([place] if place.is_file() else place.rglob("*.py"))
    }
    return sorted(file for file in files if file.is_file())


def _spec(top: str) -> ModuleSpec | None:
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        spec = None
    # A command finds a package in its working folder, too.
    return spec or PathFinder.find_spec(top, [os.getcwd()])


def _is_installed(place: Path) -> bool:
    installed = {"site-packages", "dist-packages"} & set(place.parts)
    paths = sysconfig.get_paths()
    return bool(installed) or any(
        place.is_relative_to(paths[key]) for key in ("stdlib", "platstdlib", "purelib", "platlib")
    )


def _imported(content: bytes) -> set[str]:
    """Return the top-level names of all modules that a file imports."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        # The stage that imports the file reports the mistake.
        return set()
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            modules |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules.add(node.module.partition(".")[0])
    return modules


def users_error(error: BaseException | None) -> Exception | None:
    """Return the error, among those that led to one, that came through a user's own code."""
    if error is None:
        return None
    for cause in causes(error):
        if isinstance(cause, Exception) and users_frame(cause) is not None:
            return cause
    return None


def users_frame(error: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost place of a traceback that is in a user's own file."""
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        # The file itself is never entered.
        frames.append(traceback.FrameSummary(error.filename, error.lineno, "<module>"))
    return next((f for f in reversed(frames) if is_users_file(Path(f.filename))), None)


def raised_in(error: BaseException) -> str:
    """Return the name of the module that raised an error."""
    frames = list(traceback.walk_tb(error.__traceback__))
    return str(frames[-1][0].f_globals.get("__name__", "")) if frames else ""
