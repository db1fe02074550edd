"""The values of config files and the command line as one tree, each with its file and line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import yaml

from oneshot_lit.io.config_files import split_configs
from oneshot_lit.io.files import read_text

_CONFIGS = (".yaml", ".yml")


@dataclass
class Given:
    """A value of the configuration.

    Attributes:
        where: ``FILE line N: ``; empty on the command line, None if a later class replaced it.
        text: A scalar as it is written, or the name of a class.
        keys: The entries of a mapping, or the arguments of a class.
        items: The values of a list.
    """

    where: str | None = ""
    text: str | None = None
    keys: dict[str, Given] = field(default_factory=dict)
    items: list[Given] = field(default_factory=list)

    def take(self, later: Given) -> None:
        """Let a later value win; the arguments of a replaced class are marked as such."""
        self.where = later.where
        self.items = later.items
        if later.text is not None and later.text != self.text:
            for argument in self.keys.values():
                argument.where = None
        self.text = later.text if later.text is not None or not later.keys else self.text
        for key, value in later.keys.items():
            self.keys.setdefault(key, Given(where=None)).take(value)


def given_in(words: Sequence[str]) -> Given:
    """Return all values of a command line and its config files; later ones replace earlier ones.

    Raises:
        OneShotError: naming a file within a config that is not UTF-8.
    """
    files, others = split_configs(words)
    root = Given()
    for file in files:
        for value in _in_file(Path(file)):
            root.take(value)
    for word, after in pairwise([*others, ""]):
        if word.startswith("--"):
            name, separator, text = word[2:].partition("=")
            value = _typed(text if separator else after)
            *above, last = name.split(".")
            if last != "class_path":
                above.append(last)
            for key in reversed([key for key in above if key != "init_args"]):
                value = Given(keys={key: value})
            root.take(value)
    return root


def _typed(text: str) -> Given:
    if not text.startswith(("{", "[")):
        return _of_text(text, Path(), "")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return Given(text=text)
    return Given() if node is None else _of_node(node, None)


def _in_file(file: Path) -> Iterator[Given]:
    node = yaml.compose(read_text(file), Loader=yaml.SafeLoader)
    if node is not None:
        yield _of_node(node, file)


def _of_node(node: yaml.Node, file: Path | None) -> Given:
    where = "" if file is None else f"{file} line {node.start_mark.line + 1}: "
    if isinstance(node, yaml.SequenceNode):
        return Given(where, items=[_of_node(each, file) for each in node.value])
    if isinstance(node, yaml.ScalarNode):
        return _of_text(node.value, Path() if file is None else file.parent, where)
    given = Given(where)
    entries = {}
    for key, value in node.value:
        entries[key.value] = _of_node(value, file)
        if file is not None and not (
            isinstance(value, yaml.ScalarNode) and not entries[key.value].text
        ):
            entries[key.value].where = f"{file} line {key.start_mark.line + 1}: "
    inner_class = entries.pop("class_path", None)
    if inner_class is not None:
        given.where, given.text = inner_class.where, inner_class.text
    arguments = entries.pop("init_args", Given())
    given.keys = {**arguments.keys, **entries}
    return given


def _of_text(text: str, folder: Path, where: str) -> Given:
    """Return a scalar, or the content of the config that it names in the same folder."""
    inner = folder / text
    if text.endswith(_CONFIGS) and inner.is_file():
        with suppress(yaml.YAMLError):
            return next(_in_file(inner), Given(where))
    return Given(where, text=text)
