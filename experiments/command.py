"""What the analyses of finished studies share: the command, and the file of what to compare."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from oneshot_lit.errors import OneShotError, did_you_mean, fail
from oneshot_lit.io.files import read_text


def run_comparison(
    name: str,
    doc: str | None,
    example: Path,
    compare: Callable[[argparse.Namespace], None],
    arguments: Sequence[str] | None,
) -> int:
    """Parse ``--study``, ``--beside`` and ``--comparison``, compare, and return the exit code.

    Args:
        name: The module that is run, such as ``experiments.selection``.
        doc: The description that ``--help`` shows.
        example: The comparison file that is read unless another is given.
        compare: Does the work with the parsed options.
        arguments: The words of the command line; by default those of this process.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=doc)
    parser.add_argument("--study", type=Path, required=True, help="folder of a finished study")
    parser.add_argument(
        "--beside", type=Path, nargs="+", default=[], help="the same study at other seeds"
    )
    parser.add_argument(
        "--comparison",
        type=Path,
        default=example,
        help=f"what to compare (default: {name.replace('.', '/')}/{example.name})",
    )
    try:
        compare(parser.parse_args(arguments))
    except OneShotError as error:
        return fail(str(error), code=error.code)
    return 0


def read_comparison(path: Path, known: Sequence[str], example: str) -> dict[str, Any]:
    """Return the mapping in a YAML file, all of whose keys are known.

    Args:
        path: The file.
        known: The keys that it may have.
        example: A file to look at, which the messages name.

    Raises:
        OneShotError: naming the file and the key, if the file is missing or malformed.
    """
    if not path.is_file():
        raise OneShotError(f"{path}: not found; see {example}.")
    try:
        raw = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise OneShotError(f"{path}: is not YAML; correct it.") from error
    return checked_keys(raw, known, str(path))


def checked_keys(raw: Any, known: Sequence[str], place: str) -> dict[str, Any]:
    """Return a mapping all of whose keys are known; `place` begins the error messages.

    Raises:
        OneShotError: if it is no mapping, or a key is unknown.
    """
    if not isinstance(raw, Mapping):
        raise OneShotError(f"{place}: must be a mapping of {', '.join(known)}.")
    for key in raw:
        if key not in known:
            raise OneShotError(f"{place}: unknown key '{key}'{did_you_mean(str(key), known)}.")
    return dict(raw)
