"""Where a key of the configuration stands: in which file and line, or on the command line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import read_text


@dataclass(frozen=True)
class Place:
    """One key of a config file or of the command line.

    Attributes:
        keys: The way to it, without ``init_args`` and the positions in lists.
        value: Its value if that is plain text, else None.
        of: Name of the class whose argument it is, as far as the same mapping tells.
        where: ``FILE line N: ``; empty on the command line.
    """

    keys: tuple[str, ...]
    value: str | None
    of: str = ""
    where: str = ""


def find_key(
    places: Sequence[Place], key: str, owner: str = "", value: str | None = None
) -> Place | None:
    """Return the place of a key that the parser complains of.

    Args:
        places: All keys, in the order in which the parser reads them.
        key: Dotted, as far as the parser tells: names of prompt sets, for one, may be missing.
        owner: Name of the class whose argument it is, if known.
        value: Its value, if known.
    """
    parts = tuple(part for part in key.split(".") if part != "init_args")
    fits = [
        each
        for each in places
        if each.keys[-1:] == parts[-1:] and _holds(each.keys, parts) and each.of in ("", owner)
    ]
    # Where the same key is right in another section, that section names another class.
    fits.sort(key=lambda each: (value is not None and each.value != value, each.of != owner))
    return fits[0] if fits else None


def find_value(places: Sequence[Place], value: str) -> Place | None:
    """Return the first place with a value."""
    return next((each for each in places if each.value == value), None)


def places_in(files: Sequence[Path], words: Sequence[str]) -> list[Place]:
    """Return every key of config files, and of the files that they name, and of a command line."""
    places = [place for file in files for place in _in_file(file, ())]
    for word, after in pairwise([*words, ""]):
        if word.startswith("--"):
            key, separator, value = word[2:].partition("=")
            places.append(Place(_plain(key.split(".")), value if separator else after))
    return places


def _in_file(file: Path, above: tuple[str, ...], depth: int = 0) -> Iterator[Place]:
    try:
        root = yaml.compose(read_text(file), Loader=yaml.SafeLoader)
    except (OSError, OneShotError, yaml.YAMLError):
        return
    if root is not None:
        yield from _in_node(root, above, file, depth)


def _in_node(
    node: yaml.Node, keys: tuple[str, ...], file: Path, depth: int, of: str = ""
) -> Iterator[Place]:
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _in_node(each, keys, file, depth)
    elif isinstance(node, yaml.ScalarNode) and depth < 5:
        # The parser looks for a config within a config beside the outer one.
        if node.value.endswith((".yaml", ".yml", ".json")):
            inner = file.parent / Path(node.value).expanduser()
            yield from _in_file(inner if inner.is_file() else Path(node.value), keys, depth + 1)
    elif isinstance(node, yaml.MappingNode):
        named = {str(key.value): value for key, value in node.value}
        path = named.get("class_path")
        for key, value in node.value:
            inside = _plain((*keys, str(key.value)))
            scalar = value.value if isinstance(value, yaml.ScalarNode) else None
            yield Place(inside, scalar, of, f"{file} line {key.start_mark.line + 1}: ")
            below = ""
            if key.value == "init_args" and isinstance(path, yaml.ScalarNode):
                below = path.value.rpartition(".")[2]
            yield from _in_node(value, inside, file, depth, below)


def _plain(keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(key for key in keys if key not in ("init_args", "class_path"))


def _holds(keys: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether all parts are among the keys, in their order."""
    rest = iter(keys)
    return all(part in rest for part in parts)
