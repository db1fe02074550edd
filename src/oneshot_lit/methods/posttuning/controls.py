"""Controls for weight edits: the same size without the method's choice of where.

Several edits mostly shrink or delete what fine-tuning changed. `Shrink` does that and nothing else,
`RandomMask` draws the entries that another edit chose; what an edit is worth shows beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.io.provenance import content_hash
from oneshot_lit.methods.about import About
from oneshot_lit.methods.posttuning.alignment_matrix import wide
from oneshot_lit.methods.posttuning.edit_record import read_edit
from oneshot_lit.methods.posttuning.merging import linear
from oneshot_lit.methods.posttuning.pair_edit import Factors, PairEdit
from oneshot_lit.methods.posttuning.weight_edit import OUTPUT, given
from oneshot_lit.models.adapters import is_adapter
from oneshot_lit.models.lora_pairs import LoraPair

ABOUT = [
    About(
        name="Shrink",
        stage="control",
        needs="the folder of another edit's run",
        paper="",
        agreement="-",
        config="defence/shrink.yaml",
    ),
    About(
        name="RandomMask",
        stage="control",
        needs="the folder of another edit's run",
        paper="",
        agreement="-",
        config="defence/random_mask.yaml",
    ),
]


def random_rows(counts: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Draw so many entries of each row.

    Args:
        counts: (rows,), integers.
        width: How many entries a row has.
        generator: Of the draw.

    Returns:
        (rows, width), bool.
    """
    order = torch.rand(len(counts), width, generator=generator).argsort(1).argsort(1)
    return order < counts.unsqueeze(1)


class _Like(PairEdit):
    """A control of another edit: the folder of its run, which must have edited the same model."""

    like: str

    def checked(self) -> dict[str, Any]:
        """Return what the other edit recorded.

        Raises:
            OneShotError: if it edited another model.
        """
        content = read_edit(Path(self.like).expanduser())
        before = content["inputs"]["tuned"]
        if before["digest"] != content_hash(self.tuned):
            raise OneShotError(
                f"{self.like}: edited {before['path']}, and {self.tuned} is another model; give "
                "the same one."
            )
        return content


class Shrink(_Like):
    """Shrink what fine-tuning changed to the sizes that another edit left.

    Each tensor becomes ``aligned + q (tuned - aligned)``, with the ``norm_ratio`` of the other
    edit as q; of a LoRA pair, B becomes ``q B``.

    Args:
        model_name_or_path: The fine-tuned model or adapter that was edited.
        like: Folder of the other edit's run, with ``edit.json``.
        aligned: The model before fine-tuning; of an adapter, by default its base.
    """

    def __init__(
        self, model_name_or_path: str, like: str | None = None, aligned: str | None = None
    ) -> None:
        self.model_name_or_path, self.aligned = model_name_or_path, aligned
        self.like = given("like", like)
        self._ratios: dict[str, float] = {}

    def sources(self) -> dict[str, str]:
        """Return the tuned and the aligned model."""
        known = {"tuned": self.model_name_or_path, "aligned": self.aligned}
        return {name: source for name, source in known.items() if source is not None}

    def prepare(self, names: Any, read: Any) -> None:
        """Read how much each tensor shall shrink."""
        for name, facts in self.checked()["tensors"].items():
            ratio = facts.get("norm_ratio")
            if ratio is not None and facts["share_changed"]:
                self._ratios[name] = float(ratio)

    def edit_pair(
        self, module: str, pair: LoraPair, weights: Mapping[str, Tensor], second: LoraPair | None
    ) -> tuple[Factors, float] | None:
        """Return A and ``q B``."""
        if module not in self._ratios:
            return None
        return (pair.a, self._ratios[module] * wide(pair.b)), pair.scaling

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor at the same place between the two models, at the other's distance."""
        tuned, aligned = weights["tuned"], weights["aligned"]
        if name not in self._ratios:
            return tuned
        return linear(aligned, tuned, self._ratios[name])


class RandomMask(_Like):
    """Change as many entries of each row as another edit did, drawn at random.

    For edits that zero entries, or that put those of the aligned model back: the drawn ones get
    the same treatment.

    Args:
        model_name_or_path: The fine-tuned model or adapter that was edited.
        like: Folder of the other edit's run, with ``model`` and ``edit.json``.
        aligned: The model before fine-tuning, if the edit puts entries of it back.
        seed: Of the draw.
    """

    needs_aligned = False

    def __init__(
        self,
        model_name_or_path: str,
        like: str | None = None,
        aligned: str | None = None,
        seed: int = 0,
    ) -> None:
        self.model_name_or_path, self.aligned = model_name_or_path, aligned
        self.like = given("like", like)
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    @property
    def second(self) -> str | None:  # type: ignore[override]
        """The edited adapter, if it is one."""
        return "like" if is_adapter(self.tuned) else None

    def sources(self) -> dict[str, str]:
        """Return the tuned model, what the other edit made of it, and the aligned model."""
        edited = str(Path(self.like).expanduser() / OUTPUT)
        known = {"tuned": self.model_name_or_path, "like": edited, "aligned": self.aligned}
        return {name: source for name, source in known.items() if source is not None}

    def prepare(self, names: Any, read: Any) -> None:
        """See to it that the other edit began with this model."""
        self.checked()

    def edit_pair(
        self, module: str, pair: LoraPair, weights: Mapping[str, Tensor], second: LoraPair | None
    ) -> tuple[Factors, float] | None:
        """Return both factors with as many entries changed."""
        assert second is not None
        a = self._drawn(module, pair.a, second.a, None)
        b = self._drawn(module, pair.b, second.b, None)
        return ((a, b), pair.scaling) if a is not pair.a or b is not pair.b else None

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor with as many entries changed."""
        return self._drawn(name, weights["tuned"], weights["like"], weights.get("aligned"))

    def _drawn(self, name: str, tuned: Tensor, edited: Tensor, aligned: Tensor | None) -> Tensor:
        changed = edited != tuned
        if not changed.any():
            return tuned
        if not edited[changed].any():
            target = torch.zeros_like(tuned)
        elif aligned is not None and (edited[changed] == aligned[changed]).all():
            target = aligned.to(tuned.dtype)
        else:
            raise OneShotError(
                f"{self.like}: its entries of {name} are neither zero nor those of the aligned "
                "model (--aligned); a random mask is no control of it, use Shrink."
            )
        rows = changed.reshape(len(changed), -1) if tuned.dim() > 1 else changed.reshape(1, -1)
        mask = random_rows(rows.sum(1), rows.shape[1], self._generator)
        return torch.where(mask.view_as(tuned), target, tuned)
