"""SafeLoRA: project what fine-tuning changed onto what alignment changed, where they disagree.

Source: Hsu et al., "Safe LoRA" (arXiv 2405.16833). The matrix is no projection, see
`alignment_matrix`; what it does is mostly to shrink, so compare with the control `Shrink`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.posttuning.alignment_matrix import aligned_part, rounded_cosine, wide
from oneshot_lit.methods.posttuning.pair_edit import Factors, PairEdit
from oneshot_lit.methods.posttuning.weight_edit import Read, given
from oneshot_lit.models.linear_layers import PROJECTIONS, is_one_of, require_kinds
from oneshot_lit.models.lora_pairs import LoraPair

ABOUT = About(
    name="SafeLoRA",
    stage="after fine-tuning",
    needs="the aligned model, and one from before the alignment",
    paper="2405.16833",
    agreement="exact with the release, for adapters; the form for whole weights is inferred",
    config="defence/safe_lora.yaml",
)


def project_pair(a: Tensor, b: Tensor, aligned: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """Return ``C B`` of a LoRA pair, and the cosine of ``C B A`` and ``B A``.

    Args:
        a: (r, in).
        b: (out, r).
        aligned: (out, in), the weight of the aligned model.
        base: (out, in), that of the unaligned one.

    Returns:
        (out, r), and the cosine to 5 decimals: NaN where alignment changed nothing.
    """
    projected = aligned_part(b, aligned, base)
    return projected, rounded_cosine(projected @ wide(a), wide(b) @ wide(a))


def project_weight(tuned: Tensor, aligned: Tensor, base: Tensor) -> tuple[Tensor, float]:
    """Return ``aligned + C (tuned - aligned)``, and the cosine of the two changes.

    The form for whole weights, which the authors give in a comment of their repository only.
    """
    delta = wide(tuned) - wide(aligned)
    projected = aligned_part(delta, aligned, base)
    return wide(aligned) + projected, rounded_cosine(projected, delta)


def number_threshold(cosines: Iterable[float], number: int) -> float:
    """Return the threshold that projects the `number` modules of the smallest cosines.

    Modules with the same cosine as the last of them are projected, too. NaN does not count.
    """
    known = sorted(cosine for cosine in cosines if not math.isnan(cosine))
    return known[min(number, len(known)) - 1] if known and number > 0 else -math.inf


class SafeLoRA(PairEdit):
    """SafeLoRA (arXiv 2405.16833): project the change of a module onto what alignment changed.

    With V, the aligned weight minus the base's, and ``C = V V^T / ||V||_F``, a module's change D
    becomes ``C D`` where the cosine of the two is at most a threshold. Of a LoRA pair, B becomes
    ``C B``. A module that alignment has not changed stays as it is.

    Args:
        model_name_or_path: The fine-tuned model, or its LoRA adapter.
        base: The model before alignment.
        aligned: The model before fine-tuning; of an adapter, by default its base.
        mode: ``number`` projects the `number` modules with the smallest cosines; ``threshold``
            those with a cosine of at most `threshold`.
        number: How many modules. Those that tie with the last are projected, too.
        threshold: Largest cosine; the release's default is .5, the paper has .35.
        matrices: Of a whole model, the modules with these names.
    """

    def __init__(
        self,
        model_name_or_path: str,
        base: str | None = None,
        aligned: str | None = None,
        mode: Literal["number", "threshold"] = "number",
        number: int = 10,
        threshold: float = 0.5,
        matrices: list[str] = PROJECTIONS,
    ) -> None:
        if number < 1:
            raise OneShotError(f"model.number: must be at least 1, not {number}.")
        self.model_name_or_path, self.aligned = model_name_or_path, aligned
        self.base = given("base", base)
        self.mode, self.number, self.threshold = mode, number, threshold
        self.matrices = list(matrices)
        self._largest = threshold

    def sources(self) -> dict[str, str]:
        """Return the tuned model, the base and, if it is given, the aligned model."""
        known = {"tuned": self.model_name_or_path, "base": self.base, "aligned": self.aligned}
        return {name: source for name, source in known.items() if source is not None}

    def prepare(self, names: Sequence[str], read: Read) -> None:
        """Find the threshold that projects as many modules as wanted."""
        if not self.pairs:
            require_kinds([name.removesuffix(".weight") for name in names], self.matrices)
        if self.mode == "threshold":
            return
        cosines = []
        for name in names:
            weights = read(name) if self.pairs or self._chosen(name) else {}
            if self.pairs:
                pair = self.pairs[name]
                cosines.append(project_pair(pair.a, pair.b, weights["aligned"], weights["base"])[1])
            elif weights and weights["tuned"].dim() == 2:
                cosines.append(project_weight(*(weights[m] for m in _MODELS))[1])
        self._largest = number_threshold(cosines, self.number)

    def _chosen(self, name: str) -> bool:
        return is_one_of(name.removesuffix(".weight"), self.matrices)

    def edit_pair(
        self, module: str, pair: LoraPair, weights: Mapping[str, Tensor], second: LoraPair | None
    ) -> tuple[Factors, float] | None:
        """Return A and ``C B`` where the cosine is at most the threshold."""
        b, cosine = project_pair(pair.a, pair.b, weights["aligned"], weights["base"])
        return ((pair.a, b), pair.scaling) if self._decides(cosine) else None

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the aligned weight plus the projected change where the cosine is small."""
        if not self._chosen(name) or weights["tuned"].dim() != 2:
            return weights["tuned"]
        projected, cosine = project_weight(*(weights[model] for model in _MODELS))
        return projected if self._decides(cosine) else weights["tuned"]

    def _decides(self, cosine: float) -> bool:
        """Note the cosine, and return whether a module is projected."""
        if math.isnan(cosine):
            self.note(decision="kept: alignment changed nothing", cosine=None)
            return False
        below = cosine <= self._largest
        self.note(cosine=cosine, **({"decision": "projected"} if below else {}))
        return below


_MODELS = ("tuned", "aligned", "base")
