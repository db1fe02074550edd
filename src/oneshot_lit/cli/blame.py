"""Names the entry of a configuration that the parser refuses, with its file and line.

Entries are left out one after another; the one without which the mistake is gone is to blame. So
nothing here knows the types of the keys, or reads the parser's messages.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.io.config_files import split_configs
from oneshot_lit.io.files import read_text


class _Key(str):
    """A key of a config file that knows its place, ``FILE line N: ``."""

    where = ""


def blamed(
    words: Sequence[str], mistake: Callable[[Sequence[str]], str | None]
) -> tuple[str, str, str]:
    """Return the place, the dotted name and the value of the entry to blame; empty if none is.

    Args:
        words: The command line.
        mistake: Parses a command line and returns its mistake, or None.

    Raises:
        OneShotError: for a file named in a config that cannot be read.
    """
    files, others = split_configs(words)
    first = next((n for n, word in enumerate(others) if word.startswith("--")), len(others))
    # Each entry at the top with the number of its file; -1 stands for what was typed.
    entries: dict[Any, Any] = {
        (number, key): value
        for number, file in enumerate(files)
        for key, value in _loaded(Path(file)).items()
    }
    starts = [n for n in range(first, len(others)) if others[n].startswith("--")]
    for begin, end in pairwise([*starts, len(others)]):
        key, typed = others[begin], others[begin + 1 : end]
        if len(typed) == 1 and typed[0].endswith((".yaml", ".yml")) and Path(typed[0]).is_file():
            entries[-1, _Key(key)] = _loaded(Path(typed[0]))
        elif key not in ("--print_config", "--help"):
            entries[-1, _Key(key)] = (key, *typed)

    def left(tree: dict[Any, Any]) -> str | None:
        line = list(others[:first])
        with tempfile.TemporaryDirectory() as folder:
            for number in range(len(files)):
                config = {key: value for (n, key), value in tree.items() if n == number}
                file = Path(folder, f"{number}.yaml")
                file.write_text(json.dumps(config, default=str), encoding="utf-8")
                line += ["--config", str(file)]
            for place, (key, value) in enumerate((k, v) for (n, k), v in tree.items() if n == -1):
                if isinstance(value, dict):
                    file = Path(folder, f"typed{place}.yaml")
                    file.write_text(json.dumps(value, default=str), encoding="utf-8")
                line += value if isinstance(value, tuple) else [key, str(file)]
            return mistake(line)

    whole = left(entries)
    path: tuple[Any, ...] = ()
    node: Any = entries
    while whole is not None and isinstance(node, (dict, list)):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        outcomes = {key: left(_without(entries, (*path, key))) for key in reversed(keys)}
        better = [key for key, outcome in outcomes.items() if outcome is None]
        better += [key for key, outcome in outcomes.items() if outcome not in (None, whole)]
        better = [key for key in better if key != "class_path"]
        if not better:
            break
        path, node = (*path, better[0]), node[better[0]]
    names = list(path and (path[0][1], *path[1:]))
    where = next((n.where for n in reversed(names) if isinstance(n, _Key)), "")
    shown = [str(n) for n in names if not isinstance(n, int) and n != "init_args"]
    name, _, value = ".".join(shown).removeprefix("--").partition("=")
    return where, name, value or str(node[-1] if isinstance(node, tuple) else node)


def given_keys(words: Sequence[str]) -> set[str]:
    """Return the first parts of all keys that a command line and its config files give."""
    files, others = split_configs(words)
    typed = {w[2:].partition("=")[0].partition(".")[0] for w in others if w.startswith("--")}
    return typed | {str(key) for file in files for key in _loaded(Path(file))}


def _loaded(file: Path) -> dict[Any, Any]:
    content = _with_places(yaml.compose(read_text(file), Loader=yaml.SafeLoader), file)
    return content if isinstance(content, dict) else {}


def _with_places(node: yaml.Node | None, file: Path) -> Any:
    """Return a YAML value; its keys know their line, and a config that it names is loaded."""
    if isinstance(node, yaml.MappingNode):
        content = {}
        for name, value in node.value:
            key = _Key(name.value)
            key.where = f"{file} line {name.start_mark.line + 1}: "
            content[key] = _with_places(value, file)
        return content
    if isinstance(node, yaml.SequenceNode):
        return [_with_places(each, file) for each in node.value]
    inner = file.parent / str(getattr(node, "value", ""))
    if inner.suffix in (".yaml", ".yml") and inner.is_file():
        return _loaded(inner)
    return None if node is None else yaml.safe_load(yaml.serialize(node))


def _without(node: Any, path: Sequence[Any]) -> Any:
    """Return a mapping or list without the entry at a path."""
    key, *rest = path
    items = node.items() if isinstance(node, dict) else enumerate(node)
    kept = {k: _without(v, rest) if k == key else v for k, v in items if rest or k != key}
    return kept if isinstance(node, dict) else list(kept.values())
