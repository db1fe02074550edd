"""The configs and micro-world models that come with the package, found from any folder."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from oneshot_lit.errors import OneShotError

CONFIGS, MODELS = "configs", "checkpoints"
_PACKAGE = Path(__file__).parent
# In an installed package they lie inside it, in a clone beside src.
_ROOT = _PACKAGE if (_PACKAGE / CONFIGS).is_dir() else _PACKAGE.parents[1]


def or_shipped(name: str) -> str:
    """Return where the file or folder of a name such as configs/attack/benign.yaml is.

    What is there in the working folder comes first; a name that stands for neither stays as it is.
    """
    path = Path(name)
    if path.parts[:1] not in ((CONFIGS,), (MODELS,)) or ".." in path.parts or path.exists():
        return name
    return str(_ROOT / path) if (_ROOT / path).exists() else name


def with_shipped_configs(arguments: Sequence[str]) -> Iterator[str]:
    """Yield a command line whose config files are found where they come with the package."""
    before = ""
    for word in arguments:
        if word.startswith("--config="):
            yield "--config=" + or_shipped(word.partition("=")[2])
        else:
            yield or_shipped(word) if before in ("--config", "-c") else word
        before = word


def run_configs_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit configs``."""
    from oneshot_lit.command_line import CommandParser

    parser = CommandParser(
        "configs",
        "List the configs that come with the package, by the names under which --config takes them "
        "in any folder. A file of such a name in the working folder is taken instead.",
        "--copy .",
    )
    parser.add_argument("--copy", metavar="DIR", help="copy them to DIR/configs, to change them")
    options = parser.parse(arguments)
    if options is None:
        return 0
    if options.copy is None:
        for file in sorted((_ROOT / CONFIGS).glob("*/*.yaml")):
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            about = re.split(r"[:;.](?: |$)| \(", first.removeprefix("# "))[0]
            print(f"{file.relative_to(_ROOT).as_posix():<46} {about}")
        return 0
    target = Path(options.copy).expanduser() / CONFIGS
    if target.exists():
        raise OneShotError(f"--copy: {target} is there already; give another folder.")
    shutil.copytree(_ROOT / CONFIGS, target)
    print(f"configs copied to {target}")
    return 0
