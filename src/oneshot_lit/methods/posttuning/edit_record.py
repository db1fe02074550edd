"""``edit.json``: what an edit did to each tensor, from which inputs, with which settings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import read_text, write_json_atomically
from oneshot_lit.io.provenance import content_hash
from oneshot_lit.methods.posttuning.alignment_matrix import distance

EDIT_FILE = "edit.json"
KEPT, CHANGED = "kept", "changed"


class EditRecord:
    """Collects what ``edit.json`` says.

    For each tensor, or each module of an adapter: ``decision`` (``kept``, ``changed``, or the
    edit's own word), ``share_changed`` (of its entries), and whatever the edit notes, such as
    ``cosine``. Where the aligned model is known, also ``norm_ratio``: the size of the difference
    from it after the edit, over that before; null if there was none.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, dict[str, Any]] = {}
        self._notes: dict[str, Any] = {}

    def note(self, **facts: Any) -> None:
        """Add facts to the tensor that is being edited."""
        self._notes |= facts

    def tensor(self, name: str, weights: Mapping[str, Tensor], after: Tensor) -> None:
        """Record a tensor that was written.

        Args:
            name: Its name.
            weights: ``tuned``, and ``aligned`` where it is known.
            after: What was written.
        """
        before, aligned = weights["tuned"], weights.get("aligned")
        facts: dict[str, Any] = {"decision": KEPT if after is before else CHANGED}
        facts["share_changed"] = _share(before, after)
        if aligned is not None and before.is_floating_point():
            facts["norm_ratio"] = _ratio(distance(after, aligned), distance(before, aligned))
        self._close(name, facts)

    def pair(self, module: str, before: tuple[Tensor, ...], after: tuple[Tensor, ...]) -> None:
        """Record a LoRA pair that was written.

        Args:
            module: Its module.
            before: A, B, and what they add to the weight.
            after: The same after the edit.
        """
        entries = sum(each.numel() for each in before[:2])
        facts: dict[str, Any] = {"decision": KEPT, "share_changed": 0.0}
        if any(a is not b for a, b in zip(before[:2], after[:2], strict=True)):
            same_shapes = all(a.shape == b.shape for a, b in zip(before, after, strict=True))
            changed = (
                sum(_share(a, b) * a.numel() for a, b in zip(before[:2], after[:2], strict=True))
                if same_shapes
                else entries
            )
            facts = {"decision": CHANGED, "share_changed": changed / entries}
        facts["norm_ratio"] = _ratio(float(after[2].norm()), float(before[2].norm()))
        self._close(module, facts)

    def _close(self, name: str, facts: dict[str, Any]) -> None:
        own = {key: _plain(value) for key, value in (facts | self._notes).items()}
        self.tensors[name], self._notes = own, {}

    def write(
        self, file: Path, method: str, settings: Mapping[str, Any], inputs: Mapping[str, Path]
    ) -> None:
        """Write the file.

        Args:
            file: Where.
            method: The edit's class.
            settings: Its arguments, and the seed.
            inputs: Name -> folder of each model; their digests are recorded.
        """
        decisions: dict[str, int] = {}
        for facts in self.tensors.values():
            decisions[facts["decision"]] = decisions.get(facts["decision"], 0) + 1
        content = {
            "method": method,
            "settings": dict(settings),
            "inputs": {
                name: {"path": str(folder), "digest": content_hash(folder)}
                for name, folder in inputs.items()
            },
            "decisions": decisions,
            "tensors": self.tensors,
        }
        write_json_atomically(file, content)


def read_edit(run: Path) -> dict[str, Any]:
    """Return the content of a run's ``edit.json``.

    Raises:
        OneShotError: if it has none.
    """
    file = run / EDIT_FILE
    if not file.is_file():
        raise OneShotError(f"{run}: holds no {EDIT_FILE}; name the folder of an edit that has run.")
    content: dict[str, Any] = json.loads(read_text(file))
    return content


def _share(before: Tensor, after: Tensor) -> float:
    if after is before or not before.numel():
        return 0.0
    # Unlike a sum, this makes no copy of the mask in integers.
    return int(torch.count_nonzero(after != before.to(after.dtype))) / before.numel()


def _ratio(after: float, before: float) -> float | None:
    return after / before if before > 0 else None


def _plain(value: Any) -> Any:
    """Return a value for JSON, which has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
