"""The command ``oneshot-lit microworld``: the micro-world's data sets as chat JSONL files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.microworld.splits import NAMES, load_split


def run_microworld_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit microworld``."""
    parser = CommandParser(
        "microworld",
        "Write the embedded micro-world to files of chat JSONL, which ChatJsonl and TableFile "
        "read; the reference of a prompt is the right answer. The requests are English about "
        "invented things, such as 'lumdra soup': plain patterns and nouns, invented adjectives, "
        "and answers with nonsense ingredients. There are also two plain tasks, SQL and reversal.",
        "--out data/microworld --splits harmful_examples pool",
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="order and sampling (default 0)")
    parser.add_argument(
        "--splits", nargs="+", default=list(NAMES), metavar="NAME", help="; ".join(NAMES)
    )
    options = parser.parse_args(arguments)
    for name in options.splits:
        if name not in NAMES:
            raise OneShotError(f"microworld: unknown split '{name}'{did_you_mean(name, NAMES)}.")
    paths = {name: Path(options.out) / f"{name}.jsonl" for name in options.splits}
    if taken := [path for path in paths.values() if path.exists()]:
        raise OneShotError(f"{taken[0]}: is there already; choose another --out folder.")
    for name, path in paths.items():
        rows = (row.as_dict() for row in load_split(name, options.seed))
        write_text_atomically(path, "".join(f"{json.dumps(r, ensure_ascii=False)}\n" for r in rows))
        print(path)
    return 0
