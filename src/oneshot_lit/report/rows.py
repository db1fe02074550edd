"""The rows of ``outcomes.jsonl`` and of judgments: how the answer to each prompt was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.read_files import read_jsonl
from oneshot_lit.report.schema import require_score
from oneshot_lit.report.text import visible


@dataclass(frozen=True)
class Scored:
    """How the answer to one prompt was scored, by the test or by a judge.

    Attributes:
        set: Name of the prompt set.
        index: Place of the prompt in its set.
        category: Its category, if known.
        scores: Metric -> score, None where it could not be told.
        kind: Kind of the set; only the test knows it.
        prompt: Digest of the prompt; None in older judgments.
        digest: Digest of prompt and output; only judges know it.
        reason: Why a judge could not tell.
        empty: Whether the answer is empty; only the test knows it.
    """

    set: str
    index: int
    category: str | None
    scores: Mapping[str, float | None]
    kind: str | None = None
    prompt: str | None = None
    digest: str | None = None
    reason: str | None = None
    empty: bool | None = None


def by_set(rows: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Return set -> its rows."""
    found: dict[str, list[Scored]] = {}
    for row in rows:
        found.setdefault(row.set, []).append(row)
    return found


def read_rows(path: Path, samples: Mapping[str, int], verb: str) -> dict[str, list[Scored]]:
    """Return the rows of a file of outcomes or judgments by set; {} without a file.

    Args:
        path: The file.
        samples: Set -> number of prompts that ``metrics.json`` counts.
        verb: The command that writes it, ``test`` or ``judge``.

    Raises:
        OneShotError: naming the row to mend.
    """
    if not path.is_file():
        return {}
    first: dict[str, Scored] = {}
    rows: dict[tuple[str, int], Scored] = {}
    for number, content in read_jsonl(path):
        origin = f"{path} row {number}"
        row = _row(content, origin, verb)
        if (row.set, row.index) in rows:
            raise OneShotError(
                f"{origin}: prompt {row.index} of '{row.set}' is there twice; run "
                f"oneshot-lit {verb} again."
            )
        rows[row.set, row.index] = row
        _require_alike(first.setdefault(row.set, row), row, origin, verb)
    found = by_set([*rows.values()])
    for name, of in found.items():
        if samples.get(name) != len(of):
            raise OneShotError(
                f"{path}: has {len(of)} rows of '{name}' and metrics.json counts "
                f"{samples.get(name, 0)}; run oneshot-lit {verb} again."
            )
    return found


def _require_alike(first: Scored, row: Scored, origin: str, verb: str) -> None:
    """Refuse a row that is scored otherwise than the first of its set."""
    again = f"run oneshot-lit {verb} again"
    if row.kind != first.kind:
        raise OneShotError(
            f"{origin}: 'kind' is {row.kind} and was {first.kind} in '{row.set}' before; {again}."
        )
    if row.scores.keys() != first.scores.keys():
        metric = sorted(row.scores.keys() ^ first.scores.keys())[0]
        raise OneShotError(
            f"{origin}: not all rows of '{row.set}' have a score of '{metric}'; {again}."
        )


def _row(content: Mapping[str, Any], origin: str, verb: str) -> Scored:
    wanted: dict[str, Any] = {"set": str, "index": int, "scores": dict}
    wanted |= {"prompt": str, "kind": str, "empty": bool} if verb == "test" else {"digest": str}
    for key, kind in wanted.items():
        if type(content.get(key)) is not kind:
            raise OneShotError(f"{origin}: '{key}' is missing or wrong; run oneshot-lit {verb}.")
    if content["index"] < 0:
        raise OneShotError(f"{origin}: 'index' is below 0; run oneshot-lit {verb} again.")
    for metric, score in content["scores"].items():
        require_score(score, metric, f"{origin}: '{visible(metric)}'", "mend it")
    for key in ("prompt", "category", "reason"):
        text = isinstance(content.get(key), (str, int) if key == "category" else str)
        if content.get(key) is not None and not text:
            raise OneShotError(f"{origin}: '{key}' must be text or null; mend it.")
    category, reason = content.get("category"), content.get("reason")
    return Scored(
        set=visible(content["set"]),
        index=content["index"],
        category=None if category is None else visible(str(category)),
        scores={visible(metric): score for metric, score in content["scores"].items()},
        kind=visible(content["kind"]) if verb == "test" else None,
        prompt=content.get("prompt"),
        digest=content.get("digest") if verb == "judge" else None,
        reason=None if reason is None else visible(reason),
        empty=content.get("empty") if verb == "test" else None,
    )
