"""What a command of a study reads: its hashes, and the commands that must end before it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.io.config_files import check_config_files, split_configs
from oneshot_lit.io.files import read_text
from oneshot_lit.io.provenance import content_hash, named_code, source_hash
from oneshot_lit.study.spec import Study

# Keys of output folders: these are not inputs, though they exist the second time.
_OUTPUTS = ("default_root_dir", "save_dir", "dirpath")


def command_marks(arguments: Sequence[str]) -> dict[str, str]:
    """Return hashes by which a command that has changed is known.

    ``inputs`` is that of a command line, its configs, the files and folders they name (outputs of
    earlier stages included), and the source of every class and function of the user's;
    ``fingerprint`` is that of these, the source of this package and the versions of the others.

    Args:
        arguments: Verb, ``--config FILE`` and ``--key value`` words.

    Raises:
        OneShotError: if a config file is missing or no YAML mapping.
    """
    from oneshot_lit.callbacks.metrics_writer import package_versions

    check_config_files(arguments)
    files, words = split_configs(arguments)
    texts, paths = named_in(arguments)
    contents = {str(path): content_hash(path) for path in paths}
    code = named_code(text for text in texts if _is_dotted(text))
    configs = [_parsed(read_text(file)) for file in files]
    inputs = _hash([words, configs, contents, code])
    return {
        "inputs": inputs,
        "fingerprint": _hash([inputs, source_hash(), package_versions()]),
    }


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def named_in(arguments: Sequence[str]) -> tuple[set[str], set[Path]]:
    """Return every text in a command line and its configs, and the files and folders among them.

    Text that is YAML, and YAML files that are named, are read as the parser reads them.
    """
    files, (_, *words) = split_configs(arguments)
    given = _given_keys(arguments)
    waiting: list[tuple[Any, Path]] = [
        (_without(_parsed(read_text(file)), given), Path(file).parent) for file in files
    ]
    # As ``--key value`` or ``--key=value``.
    parts = [part for word in words for part in word.split("=", 1 if word[:2] == "--" else 0)]
    for key, value in pairwise(parts):
        if key.startswith("--"):
            waiting.append(({key.rpartition(".")[2]: value}, Path()))
    texts: set[str] = set()
    paths: set[Path] = set()
    while waiting:
        value, folder = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(inner, folder) for key, inner in value.items() if key not in _OUTPUTS]
        elif isinstance(value, list):
            waiting += [(inner, folder) for inner in value]
        elif isinstance(value, str) and value not in texts:
            texts.add(value)
            if isinstance(inner := _parsed(value), (Mapping, list)):
                waiting.append((inner, folder))
            # The parser looks for a nested config in the folder of the outer one.
            for path in {Path(os.path.expanduser(value)), folder / value}:
                # "." and "/" are punctuation, not the whole disk.
                if value.strip(" ./~") and os.path.exists(path):
                    paths.add(path)
                    if path.suffix in (".yaml", ".yml") and path.is_file():
                        text = path.read_text(encoding="utf-8", errors="replace")
                        waiting.append((_parsed(text), path.parent))
    return texts, paths


def _given_keys(arguments: Sequence[str]) -> set[str]:
    """Return the keys that words after the configs give, and that configs therefore do not."""
    last = max((n for n, word in enumerate(arguments) if word.startswith("--config")), default=0)
    later = arguments[last + 1 :]
    return {word[2:].partition("=")[0] for word in later if word.startswith("--")}


def _without(content: Any, given: set[str], above: str = "") -> Any:
    """Return a config without the single values that the command line replaces.

    A key that takes a mapping may be replaced in part, so only its inner values go.
    """
    if not isinstance(content, Mapping):
        return content
    kept = {}
    for key, value in content.items():
        name = above if key == "init_args" else f"{above}.{key}".lstrip(".")
        if name in given and isinstance(value, str):
            continue
        kept[key] = _without(value, given, name)
    return kept


def _is_dotted(text: str) -> bool:
    return "." in text and all(part.isidentifier() for part in text.split("."))


@lru_cache(maxsize=10_000)
def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return None


# A stage's name and one of its verbs.
Key = tuple[str, str]


def needs(study: Study) -> dict[Key, set[Key]]:
    """Return command -> the commands that must end before it starts.

    Those are the earlier commands of its stage, and the commands of each earlier stage with a
    folder that its arguments or config files name a path in; a model is there before its test ends.
    """
    needed: dict[Key, set[Key]] = {}
    for number, stage in enumerate(study.stages):
        before: set[Key] = set()
        for verb in stage.commands:
            texts, _ = named_in(study.arguments(stage, verb))
            paths = [Path(os.path.abspath(os.path.expanduser(text))) for text in texts]
            for other in study.stages[:number]:
                folder = Path(os.path.abspath(study.folder(other)))
                if inside := [path for path in paths if path.is_relative_to(folder)]:
                    model = all(path.is_relative_to(folder / "model") for path in inside)
                    verbs = set(other.commands) - ({"test"} if model else set())
                    before |= {(other.name, verb) for verb in verbs}
            needed[stage.name, verb] = set(before)
            before.add((stage.name, verb))
    return needed
