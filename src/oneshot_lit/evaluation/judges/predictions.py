"""Read the answers that are to be judged, ``predictions.jsonl`` of `oneshot-lit predict`."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.conversation import digest_of, parse_messages
from oneshot_lit.errors import OneShotError, did_you_mean
from oneshot_lit.evaluation.judges.base import Answer
from oneshot_lit.io.read_files import read_jsonl


@dataclass(frozen=True)
class Row:
    """One row of the file: the place of its prompt, and the answer to be judged.

    Attributes:
        set: Name of the prompt set.
        kind: Its kind.
        index: Place of the prompt in its set.
        id: Identifier in the source, if it has one.
        answer: Prompt and output.
        reference: The expected answer, if known; judges do not see it.
    """

    set: str
    kind: str
    index: int
    id: str | None
    answer: Answer
    reference: str | None = None

    def prompt_digest(self) -> str:
        """Return the hash of the prompt that ``outcomes.jsonl`` has for it, too."""
        return digest_of(self.answer.messages)

    def key(self) -> str:
        """Return a key that rows share if a judge sees the same of them."""
        return f"{self.answer.digest()}:{self.answer.category or ''}"


def read_predictions(path: Path) -> list[Row]:
    """Return the rows of a predictions file.

    Raises:
        OneShotError: naming the file, and the row at fault.
    """
    if not path.exists():
        raise OneShotError(
            f"{path}: no predictions; run oneshot-lit predict with this folder as "
            "--trainer.default_root_dir first, or name a file with --predictions."
        )
    rows = [_row(content, f"{path} row {number}") for number, content in read_jsonl(path)]
    if not rows:
        raise OneShotError(f"{path}: holds no row; run oneshot-lit predict again.")
    return rows


def _row(content: dict[str, Any], origin: str) -> Row:
    wanted = {"set": str, "kind": str, "index": int, "output": str}
    for key, kind in wanted.items():
        if type(content.get(key)) is not kind:
            what = "a whole number" if kind is int else "text"
            raise OneShotError(f"{origin}: '{key}' must be {what}; run oneshot-lit predict again.")
    messages = parse_messages(content.get("messages"), origin)
    if messages[-1].role != "user":
        raise OneShotError(f"{origin}: 'messages' must end with a user turn.")
    texts = {key: content.get(key) for key in ("id", "category", "reference")}
    texts = {key: None if value is None else str(value) for key, value in texts.items()}
    answer = Answer(messages, content["output"], texts["category"])
    place = (content["set"], content["kind"], content["index"])
    return Row(*place, texts["id"], answer, texts["reference"])


def choose_sets(
    rows: Sequence[Row], names: Sequence[str] | None, path: Path
) -> dict[str, list[Row]]:
    """Return the rows of each set that is to be judged: the named ones, or all harmful ones.

    Raises:
        OneShotError: for an unknown set, or if there is nothing to judge.
    """
    known: dict[str, list[Row]] = {}
    for row in rows:
        known.setdefault(row.set, []).append(row)
    for name in names or ():
        if name not in known:
            raise OneShotError(
                f"{path}: has no set '{name}'{did_you_mean(name, known)}; its sets are "
                f"{', '.join(known)}."
            )
    chosen = {
        n: of for n, of in known.items() if (n in names if names else of[0].kind == "harmful")
    }
    if not chosen:
        raise OneShotError(
            f"{path}: has no set of kind harmful; name the sets to judge with --sets "
            f"({', '.join(known)})."
        )
    return chosen


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
