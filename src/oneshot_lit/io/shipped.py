"""The configs and micro-world models that come with the package, found from any folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

CONFIGS, MODELS = "configs", "checkpoints"
_PACKAGE = Path(__file__).parents[1]
# An installed package has them inside; in a clone they are beside src.
ROOT = _PACKAGE if (_PACKAGE / CONFIGS).is_dir() else _PACKAGE.parents[1]


def or_shipped(name: str) -> str:
    """Return the path of the file or folder that a name such as configs/attack/benign.yaml means.

    One in the working folder comes first; a name that is in neither place stays as it is.
    """
    path = Path(name)
    if path.parts[:1] not in ((CONFIGS,), (MODELS,)) or ".." in path.parts or path.exists():
        return name
    return str(ROOT / path) if (ROOT / path).exists() else name


def with_shipped_configs(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a command line in which the package's own config files have their full path."""
    before = ""
    for word in arguments:
        if word.startswith("--config="):
            yield "--config=" + or_shipped(word.partition("=")[2])
        else:
            yield or_shipped(word) if before in ("--config", "-c") else word
        before = word
