"""The fingerprint of a command: a hash of everything that decides what it writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.io.config_files import check_config_files, split_configs
from oneshot_lit.io.files import read_text
from oneshot_lit.io.provenance import named_code, source_hash

# Larger files count by size and time: hashing a 70B model would take longer than some stages.
_HASHED_WHOLE = 256 * 2**20
# Keys of output folders: these are not inputs, though they exist the second time.
_OUTPUTS = ("default_root_dir", "save_dir", "dirpath")


def command_fingerprint(arguments: Sequence[str]) -> str:
    """Return a hash of a command line, its configs, what these name, and the code.

    That includes every file and folder they name, such as the outputs of earlier stages, and the
    source of every class and function.

    Args:
        arguments: Command, ``--config FILE`` and ``--key value`` words.

    Raises:
        OneShotError: if a config file is missing or no YAML mapping.
    """
    from oneshot_lit.callbacks.metrics_writer import package_versions

    check_config_files(arguments)
    files, words = split_configs(arguments)
    configs = [_parsed(read_text(file)) for file in files]
    names = named_in(arguments)
    inputs = {str(path): content_hash(path) for path in names.paths}
    code = named_code(text for text in names.texts if _is_dotted(text))
    content = [words, configs, inputs, code, source_hash(), package_versions()]
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass
class Names:
    """Every text in a command line and its configs, and the files and folders among them."""

    texts: set[str] = field(default_factory=set)
    paths: set[Path] = field(default_factory=set)

    def add(self, value: Any, key: str, folder: Path) -> None:
        """Add what a value names; `folder` is the folder of its config."""
        if key.rpartition(".")[2] in _OUTPUTS:
            return
        if isinstance(value, Mapping):
            for inner_key, inner in value.items():
                self.add(inner, str(inner_key), folder)
        elif isinstance(value, list):
            for inner in value:
                self.add(inner, key, folder)
        elif isinstance(value, str) and value not in self.texts:
            self.texts.add(value)
            # The parser looks for a nested config in the folder of the outer one.
            for path in (_path(value), folder / _path(value)):
                # "." and "/" are punctuation, not the whole disk.
                if value.strip(" ./~") and path not in self.paths and _exists(path):
                    self._follow(path)
            # The parser reads a string that holds YAML like the mapping itself.
            if isinstance(inner := _parsed(value), (Mapping, list)):
                self.add(inner, key, folder)

    def _follow(self, path: Path) -> None:
        self.paths.add(path)
        if path.suffix in (".yaml", ".yml") and path.is_file():
            # A file that is not UTF-8 is still hashed, and the stage itself reports the error.
            text = path.read_text(encoding="utf-8", errors="replace")
            self.add(_parsed(text), "", path.parent)


def named_in(arguments: Sequence[str]) -> Names:
    """Return what a command line and its config files name."""
    names = Names()
    files, words = split_configs(arguments)
    for file in files:
        names.add(_parsed(read_text(file)), "", Path(file).parent)
    for before, word in pairwise(["", *words]):
        key, equals, value = word.partition("=")
        if equals and key.startswith("--"):
            names.add(value, key.removeprefix("--"), Path())
        elif not word.startswith("--"):
            names.add(word, before.removeprefix("--"), Path())
    return names


def _is_dotted(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


@lru_cache(maxsize=10_000)
def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _path(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        # Like the shell, take "~name" as a plain name if there is no such user.
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


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
