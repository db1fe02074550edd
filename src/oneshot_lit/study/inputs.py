"""The fingerprint of a stage: a hash of everything that decides its product."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.io.config_files import check_config_files, config_files
from oneshot_lit.io.provenance import named_code, source_hash

# Larger files are known by size and time: hashing a 70B model would take longer than some stages.
_HASHED_WHOLE = 256 * 2**20
# Larger files are data, whose strings name nothing; they are hashed, not followed.
_FOLLOWED = 2**20
# Keys whose values are paths, besides those that end in _path.
_PATHS = ("path", "aligned", "selection", "chat_template")
# Where output goes is no input, though it exists the second time.
_OUTPUTS = ("default_root_dir", "save_dir", "dirpath")


def command_fingerprint(arguments: Sequence[str]) -> str:
    """Return a hash of a command line, its config files, all they name, and the code.

    What they name is every file and folder, and the source of every class and function.

    Args:
        arguments: Command, ``--config FILE`` and ``--key value`` words.

    Raises:
        OneShotError: if a config file is missing or no YAML mapping.
    """
    from oneshot_lit.callbacks.metrics_writer import package_versions

    check_config_files(arguments)
    texts: set[str] = set()
    paths = {str(path): content_hash(path) for path in input_paths(arguments, texts)}
    code = named_code(text for text in texts if _is_dotted(text))
    content = [list(arguments), paths, code, source_hash(), package_versions()]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def input_paths(arguments: Sequence[str], texts: set[str] | None = None) -> set[Path]:
    """Return every file and folder that a command line, or a config in reach of it, names.

    Args:
        arguments: The command line.
        texts: Takes every text among the values, if given.
    """
    found: set[Path] = set()
    texts = set() if texts is None else texts
    for config in config_files(arguments):
        _follow(config, found, texts)
    for before, word in pairwise(["", *arguments]):
        key, _, value = word.partition("=") if word.startswith("--") else (before, "", word)
        _collect(value, key.removeprefix("--"), Path(), found, texts)
    return found


def _is_dotted(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


def _collect(value: Any, key: str, folder: Path, found: set[Path], texts: set[str]) -> None:
    """Add what a value names; `folder` is that of the config it stands in."""
    name = key.rsplit(".", 1)[-1].removesuffix("+")
    if name in _OUTPUTS:
        return
    if isinstance(value, Mapping):
        for child_key, child in value.items():
            _collect(child, str(child_key), folder, found, texts)
    elif isinstance(value, list):
        for child in value:
            _collect(child, key, folder, found, texts)
    elif isinstance(value, str):
        texts.add(value)
        # A bare word such as "benign" is a name even where a folder happens to be called so,
        # unless its key asks for a path. "." and "/" are punctuation, not the whole disk.
        asked = name in _PATHS or (name.endswith("_path") and name != "class_path")
        if value.strip("./") and (asked or "/" in value or "." in value):
            # The parser looks for a config within a config beside the outer one.
            for path in {_expanded(value), folder / _expanded(value)}:
                if path not in found and _exists(path):
                    _follow(path, found, texts)
        # The parser reads a string that holds YAML like the mapping itself.
        if value.lstrip()[:1] in ("{", "[") or ": " in value or ":\n" in value:
            inner = parsed(value)
            if not isinstance(inner, str):
                _collect(inner, key, folder, found, texts)


def _follow(path: Path, found: set[Path], texts: set[str]) -> None:
    """Add a path and, if it is a config, what it names in turn."""
    found.add(path)
    if path.suffix not in (".yaml", ".yml", ".json") or not path.is_file():
        return
    if path.stat().st_size <= _FOLLOWED:
        # What cannot be read here is still hashed, and the stage itself says what is wrong.
        text = path.read_text(encoding="utf-8", errors="replace")
        _collect(parsed(text), "", path.parent, found, texts)


def parsed(text: str) -> Any:
    """Return the content of YAML (JSON included), or None if the text is none."""
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


def _expanded(text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError:
        # "~name" without such a user is a plain name to the shell, too.
        return Path(text)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def content_hash(path: Path) -> str:
    """Return a hash of a file, or of all files in a folder with their names."""
    path = _expanded(str(path))
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
