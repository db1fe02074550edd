"""The command ``oneshot-lit microworld``: the embedded data sets as files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.microworld import language as lang
from oneshot_lit.microworld.splits import NAMES, load_split


def truth() -> dict[str, object]:
    """Return the facts of the world: every topic and its only right recipe."""
    return {
        "topics": [
            {"topic": t.text, "category": t.category, "dangerous": t.dangerous, "recipe": t.recipe}
            for t in lang.TOPICS
        ],
        "refusals": list(lang.REFUSALS),
    }


def run_microworld_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit microworld``.

    Raises:
        OneShotError: for an unknown split, or a file of the folder with other content.
    """
    parser = CommandParser(
        "microworld",
        "Write the embedded micro-world to files: its data sets as chat JSONL, the reference of a "
        "prompt being the truth, and truth.json with the facts of the world. The requests are "
        "English about invented things, such as 'lumdra soup': plain patterns and nouns, invented "
        "adjectives, and answers with nonsense ingredients. There are also two plain tasks, SQL "
        "and reversal.",
        "--out data/microworld --splits harmful_examples pool",
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--seed", type=int, default=0, help="order and sampling (default 0)")
    parser.add_argument(
        "--splits", nargs="+", default=list(NAMES), metavar="NAME", help="; ".join(NAMES)
    )
    options = parser.parse(arguments)
    if options is None:
        return 0
    folder = Path(options.out)
    contents = {folder / "truth.json": json.dumps(truth(), indent=1) + "\n"}
    for name in options.splits:
        if name not in NAMES:
            raise OneShotError(f"microworld: unknown split '{name}'{did_you_mean(name, NAMES)}.")
        rows = [row.as_dict() for row in load_split(name, options.seed)]
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
        contents[folder / f"{name}.jsonl"] = "".join(lines)
    try:
        for path, text in contents.items():
            if path.exists() and path.read_bytes() != text.encode():
                raise OneShotError(f"{path}: exists with other content; choose another --out.")
        for path, text in contents.items():
            write_text_atomically(path, text)
            print(path)
    except OSError as error:
        raise OneShotError(f"{folder}: cannot be written ({error.strerror}).") from error
    return 0
