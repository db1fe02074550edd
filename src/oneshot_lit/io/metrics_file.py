"""``metrics.json``: read it, and add the scores of an evaluation that ran after the test."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.io.locking import results_locked

METRICS_FILE = "metrics.json"


def read_metrics(root: Path) -> dict[str, Any]:
    """Return the content of ``<root>/metrics.json``, with its keys ``metrics`` and ``evaluations``.

    Raises:
        OneShotError: if the file is there and holds anything else than an object.
    """
    path = root / METRICS_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = {}
    except ValueError as error:
        raise OneShotError(f"{path}: is no JSON; remove it, or run the test again.") from error
    content = {"metrics": {}, "evaluations": {}} | content if isinstance(content, dict) else {}
    if not all(isinstance(content.get(key), dict) for key in ("metrics", "evaluations")):
        raise OneShotError(f"{path}: is not what a test writes; remove it, or run the test again.")
    return content


def later_evaluations(root: Path) -> dict[str, Any]:
    """Return the ``metrics`` and ``evaluations`` that anything but the test has added."""
    content = read_metrics(root)
    own = {key for each in content["evaluations"].values() for key in each.get("scores", ())}
    metrics = {key: value for key, value in content["metrics"].items() if key in own}
    return {"metrics": metrics, "evaluations": content["evaluations"]}


def is_tested(root: Path) -> bool:
    """Whether a test has written the file, not only later evaluations."""
    try:
        content = read_metrics(root)
    except OneShotError:
        return True
    return "samples" in content or not content["evaluations"]


def require_free(root: Path, evaluation: str, keys: Iterable[str]) -> dict[str, Any]:
    """Return the content of ``<root>/metrics.json`` without the scores of an earlier evaluation.

    Args:
        root: Folder of the run.
        evaluation: Name of the evaluation that is to add scores.
        keys: ``<set>/<metric>`` of those scores.

    Raises:
        OneShotError: if one of them belongs to another evaluation, or the file is unreadable.
    """
    content = read_metrics(root)
    before = content["evaluations"].get(evaluation, {}).get("scores", ())
    metrics = {key: value for key, value in content["metrics"].items() if key not in before}
    taken = [key for key in keys if key in metrics]
    if taken:
        raise OneShotError(
            f"{root / METRICS_FILE}: '{taken[0]}' is there already, from another evaluation; give "
            f"'{evaluation}' another metric name, or another folder."
        )
    return content | {"metrics": metrics}


def merge_scores(
    root: Path, evaluation: str, scores: Mapping[str, float], facts: Mapping[str, Any]
) -> Path:
    """Add the scores of a later evaluation, such as a judge's, to ``<root>/metrics.json``.

    The file is made if there is none; other processes wait. What the same evaluation added before
    is replaced; nothing else changes.

    Args:
        root: Folder of the run.
        evaluation: Name of the evaluation, a key of ``evaluations``.
        scores: ``<set>/<metric>`` -> value; NaN, such as the mean of no judged answer, is left out
            of ``metrics``, so `facts` must count what could not be judged.
        facts: Version, counts and provenance, as plain JSON values.

    Returns:
        The file.

    Raises:
        OneShotError: for a score that belongs to another evaluation, or an unreadable file.
    """
    finite = {key: float(value) for key, value in scores.items() if math.isfinite(value)}
    with results_locked(root):
        content = require_free(root, evaluation, scores)
        content["metrics"] |= finite
        content["evaluations"][evaluation] = {**facts, "scores": sorted(scores)}
        write_json_atomically(root / METRICS_FILE, content)
    return root / METRICS_FILE


def mark_outdated(root: Path, digest: str) -> list[str]:
    """Mark the evaluations of answers that are gone, and return their names.

    Their scores stay, as they were paid for; judging again replaces them and the mark.

    Args:
        root: Folder of the run, whose ``predictions.jsonl`` was written again.
        digest: SHA-256 of that file.

    Raises:
        OneShotError: if ``metrics.json`` is unreadable.
    """
    with results_locked(root):
        content = read_metrics(root)
        gone = [
            name
            for name, facts in content["evaluations"].items()
            # With the key ``predictions`` it judged answers in another file.
            if "predictions" not in facts and facts.get("predictions_sha256", digest) != digest
        ]
        for name in gone:
            content["evaluations"][name]["outdated"] = True
        if gone:
            write_json_atomically(root / METRICS_FILE, content)
    return gone
