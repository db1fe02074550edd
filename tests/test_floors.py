"""Every import of the package points to a lower floor, and no modules import each other in circles.

The table of floors is the only thing to change when a folder is added. Imports are read from the
sources, those within functions too.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = "oneshot_lit"

# From the ground up; a module belongs to the longest name that it begins with.
FLOORS = (
    "oneshot_lit.errors",
    "oneshot_lit.conversation",
    "oneshot_lit.microworld",
    "oneshot_lit.fairytale",
    "oneshot_lit.io",
    "oneshot_lit.strategies",
    "oneshot_lit.spectral",
    "oneshot_lit.models",
    "oneshot_lit.evaluation.metrics",
    "oneshot_lit.evaluation",
    "oneshot_lit.plots",
    "oneshot_lit.data",
    "oneshot_lit.methods",
    "oneshot_lit.callbacks",
    "oneshot_lit.report",
    "oneshot_lit.study",
    "oneshot_lit.cli",
    "oneshot_lit.__main__",
)


def imports_of(source: Path) -> dict[str, set[str]]:
    """Return module -> the modules of the package that it imports."""
    files = {}
    for file in sorted((source / PACKAGE).rglob("*.py")):
        parts = file.relative_to(source).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    imports = {}
    for name, file in files.items():
        imported = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names if alias.name in files}
            elif isinstance(node, ast.ImportFrom) and (node.module or "") in files:
                inner = [f"{node.module}.{alias.name}" for alias in node.names]
                imported |= {each if each in files else str(node.module) for each in inner}
        # The package itself holds only the version.
        imports[name] = imported - {name, PACKAGE}
    return imports


def floor_of(module: str) -> int:
    """Return on which floor a module is, 0 at the ground."""
    fitting = [floor for floor in FLOORS if f"{module}.".startswith(f"{floor}.")]
    assert fitting, f"{module} is on no floor; add its folder to the table"
    return FLOORS.index(max(fitting, key=len))


def upward_imports(imports: dict[str, set[str]]) -> list[str]:
    """Return each import of a module on a higher floor, in words."""
    return sorted(
        f"{module} imports {other}, which is on a higher floor"
        for module, others in imports.items()
        for other in others
        if module != PACKAGE and floor_of(other) > floor_of(module)
    )


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other in circles."""
    reached: dict[str, set[str]] = {}
    for start in imports:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for other in imports[waiting.pop()]:
                if other not in seen:
                    seen.add(other)
                    waiting.append(other)
        reached[start] = seen
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in imports
        if module in reached[module]
    }
    return [list(group) for group in sorted(groups)]


IMPORTS = imports_of(SOURCE)


def test_each_import_points_to_a_lower_floor() -> None:
    assert upward_imports(IMPORTS) == []


def test_no_modules_import_each_other_in_circles() -> None:
    assert circles(IMPORTS) == []


def test_each_floor_is_in_use() -> None:
    assert {FLOORS[floor_of(name)] for name in IMPORTS if name != PACKAGE} == set(FLOORS)


@pytest.mark.parametrize(
    "line", ["import {}", "from {} import x", "def f():\n    from {} import x"]
)
def test_an_upward_import_and_a_circle_are_seen(tmp_path: Path, line: str) -> None:
    folder = tmp_path / PACKAGE
    (folder / "io").mkdir(parents=True)
    for name in ("__init__", "errors", "io/__init__"):
        (folder / f"{name}.py").touch()
    (folder / "io/files.py").write_text("from oneshot_lit.errors import x", encoding="utf-8")
    assert upward_imports(imports_of(tmp_path)) == []
    (folder / "errors.py").write_text(line.format("oneshot_lit.io.files"), encoding="utf-8")
    imports = imports_of(tmp_path)
    assert len(upward_imports(imports)) == 1
    assert circles(imports) == [["oneshot_lit.errors", "oneshot_lit.io.files"]]
