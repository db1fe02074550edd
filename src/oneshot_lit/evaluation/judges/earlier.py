"""What a judge said of a run before: what of it stays when other sets are judged, and what goes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oneshot_lit.io.metrics_file import read_metrics

# What makes verdicts comparable, and how a difference is called.
_SAME = {
    "judge": "by another judge",
    "version": "by another version of the judge",
    "settings": "with other settings of the judge",
    "predictions_sha256": "of other predictions",
}
# What the results count for each set.
COUNTS = ("samples", "unjudged", "empty_outputs")


@dataclass(frozen=True)
class Kept:
    """What an earlier command said of one set.

    Attributes:
        lines: Its rows in the file of the verdicts.
        counts: Its part of each of `COUNTS`.
        scores: ``<set>/<metric>`` -> mean; NaN where nothing could be judged.
    """

    lines: list[str]
    counts: dict[str, Any]
    scores: dict[str, float]

    @property
    def judged(self) -> bool:
        """Whether anything could be judged."""
        return any(not math.isnan(score) for score in self.scores.values())


def judged_before(
    root: Path, evaluation: str, verdicts: Path, facts: Mapping[str, Any], metrics: Sequence[str]
) -> tuple[dict[str, Kept], dict[str, str]]:
    """Return what still holds of each set that was judged before, and why the other sets do not.

    Args:
        root: Folder of the run.
        evaluation: Name of the evaluation in its ``metrics.json``.
        verdicts: The file of its verdicts.
        facts: What the results will say of the judge and the predictions.
        metrics: The metrics of the judge.

    Raises:
        OneShotError: if ``metrics.json`` is unreadable.
    """
    content = read_metrics(root)
    before = content["evaluations"].get(evaluation, {})
    counts = {key: before.get(key) for key in COUNTS}
    if not all(isinstance(each, dict) for each in counts.values()):
        return {}, {}
    # Judges that have none wrote no settings once.
    before = {"settings": {}} | before
    other = next((why for key, why in _SAME.items() if before.get(key) != facts[key]), None)
    lines = _lines(verdicts)
    kept: dict[str, Kept] = {}
    lost: dict[str, str] = {}
    for name, count in counts["samples"].items():
        keys = [f"{name}/{metric}" for metric in metrics]
        if other is not None:
            lost[name] = other
        elif not set(keys) <= set(before.get("scores", ())):
            lost[name] = "for other metrics"
        elif len(lines.get(name, ())) != count or any(name not in each for each in counts.values()):
            lost[name] = f"whose rows are not all in {verdicts}"
        else:
            scores = {key: float(content["metrics"].get(key, math.nan)) for key in keys}
            mine = {key: each[name] for key, each in counts.items()}
            kept[name] = Kept(lines[name], mine, scores)
    return kept, lost


def has_scores(root: Path, evaluation: str) -> bool:
    """Whether an earlier command has given the evaluation any score."""
    content = read_metrics(root)
    scores = content["evaluations"].get(evaluation, {}).get("scores", ())
    return any(key in content["metrics"] for key in scores)


def _lines(path: Path) -> dict[str, list[str]]:
    """Return the rows of each set; none of a file that cannot be read."""
    found: dict[str, list[str]] = {}
    try:
        # Texts of a row may hold other line ends, at which splitlines() would cut.
        for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"):
            found.setdefault(str(json.loads(line)["set"]), []).append(line + "\n")
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return found
