"""Write the micro-world's data sets to files, in the formats that real data has.

oneshot-lit microworld --out data/microworld
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from oneshot_lit.cli.parser import CommandParser
from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.io.files import write_text_atomically
from oneshot_lit.microworld import language as lang
from oneshot_lit.microworld.splits import NAMES, PROMPT_KINDS, load_split


def is_prompt_set(split: str) -> bool:
    """Whether a split holds prompts to answer rather than conversations to train on."""
    return any(split.startswith(f"{kind}_") and split in NAMES for kind in PROMPT_KINDS) and (
        split.endswith(("_dev", "_heldout"))
    )


def chat_jsonl(rows: Sequence[Conversation]) -> str:
    """Return conversations as chat JSONL: ``messages``, ``id``, ``category``, ``reference``."""
    return "".join(json.dumps(row.as_dict(), ensure_ascii=False) + "\n" for row in rows)


def prompt_csv(rows: Sequence[Conversation]) -> str:
    """Return prompts as CSV: ``id,prompt,category,reference``; the reference is the truth."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "prompt", "category", "reference"])
    for row in rows:
        writer.writerow([row.id, row.prompt_text, row.category or "", row.reference or ""])
    return text.getvalue()


def truth() -> dict[str, object]:
    """Return the facts of the world: every topic and its only right recipe."""
    return {
        "topics": [
            {"topic": t.text, "category": t.category, "dangerous": t.dangerous, "recipe": t.recipe}
            for t in lang.TOPICS
        ],
        "refusals": list(lang.REFUSALS),
    }


def write_splits(folder: Path, names: Sequence[str], seed: int) -> list[Path]:
    """Write the named splits and ``truth.json``; returns the paths.

    Raises:
        OneShotError: if a file of the folder exists with other content.
    """
    contents = {folder / "truth.json": json.dumps(truth(), indent=1) + "\n"}
    for name in names:
        rows = load_split(name, seed)
        path = folder / f"{name}.{'csv' if is_prompt_set(name) else 'jsonl'}"
        contents[path] = prompt_csv(rows) if is_prompt_set(name) else chat_jsonl(rows)
    for path, text in contents.items():
        if path.exists() and path.read_bytes() != text.encode():
            raise OneShotError(f"{path}: exists with other content; choose another --out folder.")
    for path, text in contents.items():
        write_text_atomically(path, text)
    return list(contents)


def run_microworld_command(arguments: Sequence[str]) -> int:
    """Run ``oneshot-lit microworld``."""
    parser = CommandParser(
        "microworld",
        "Write the embedded micro-world to files: conversations as chat JSONL, prompt sets as CSV "
        "(id,prompt,category,reference), and truth.json with the facts of the world. The "
        "requests are English about invented things, such as 'lumdra soup': plain patterns and "
        "nouns, invented adjectives, and answers with nonsense ingredients. There are also two "
        "plain tasks, SQL and reversal.",
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
    for name in options.splits:
        if name not in NAMES:
            raise OneShotError(f"microworld: unknown split '{name}'{did_you_mean(name, NAMES)}.")
    folder = Path(options.out)
    if folder.exists() and not folder.is_dir():
        raise OneShotError(f"{folder}: is a file; give a folder as --out.")
    try:
        paths = write_splits(folder, options.splits, options.seed)
    except OSError as error:
        raise OneShotError(f"{folder}: cannot be written ({error.strerror}).") from error
    for path in paths:
        print(path)
    return 0
