"""``oneshot-lit configs``: list or copy the configs that come with the package."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.shipped import CONFIGS, ROOT


def run_configs_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit configs``."""
    parser = CommandParser(
        "configs",
        "List the configs that come with the package, by the names that --config accepts in any "
        "folder. A file of the same name in the working folder takes precedence.",
        "--copy .",
    )
    parser.add_argument("--copy", metavar="DIR", help="copy them to DIR/configs, to change them")
    options = parser.parse_args(arguments)
    if options.copy is None:
        for file in sorted((ROOT / CONFIGS).glob("*/*.yaml")):
            first = file.read_text(encoding="utf-8").partition("\n")[0]
            about = re.split(r"[:;.](?: |$)| \(", first.removeprefix("# "))[0]
            print(f"{file.relative_to(ROOT).as_posix():<46} {about}")
        return 0
    target = Path(options.copy).expanduser() / CONFIGS
    if target.exists():
        raise OneShotError(f"--copy: {target} is there already; give another folder.")
    shutil.copytree(ROOT / CONFIGS, target)
    print(f"configs copied to {target}")
    return 0
