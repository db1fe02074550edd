"""The config files of a command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.files import read_text


def check_config_files(arguments: Sequence[str]) -> None:
    """Refuse config files that are missing or not YAML mappings, by name.

    Raises:
        OneShotError: naming the file, and the line where its YAML breaks.
    """
    for path in map(Path, split_configs(arguments)[0]):
        if not path.is_file():
            near = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
            raise OneShotError(f"{path}: config file not found{did_you_mean(path.name, near)}.")
        try:
            content = yaml.safe_load(read_text(path))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            place = f" line {mark.line + 1}" if mark is not None else ""
            problem = getattr(error, "problem", None) or "a character that YAML does not allow"
            raise OneShotError(f"{path}{place}: not YAML ({problem}); correct it.") from error
        if not isinstance(content, dict):
            raise OneShotError(f"{path}: must hold keys such as model, data and trainer.")


def split_configs(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files given by ``--config`` (or ``-c``) and all other words, each in order."""
    files, others, words = [], [], iter(arguments)
    for word in words:
        if word.startswith("--config="):
            files.append(word.split("=", 1)[1])
        elif word in ("--config", "-c") and (file := next(words, None)) is not None:
            files.append(file)
        else:
            others.append(word)
    return files, others
