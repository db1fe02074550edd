"""SafeMERGE: merge a LoRA adapter with one trained on safety rows where it leaves the alignment.

Source: Djuhera et al. (arXiv 2503.17239). The paper's formula merges the changes of the weights;
the release merges the factors, which adds cross terms. Both are here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.posttuning.alignment_matrix import aligned_part, rounded_cosine, wide
from oneshot_lit.methods.posttuning.pair_edit import Factors as Matrices
from oneshot_lit.methods.posttuning.pair_edit import PairEdit
from oneshot_lit.methods.posttuning.weight_edit import given
from oneshot_lit.models.adapters import is_adapter
from oneshot_lit.models.lora_pairs import LoraPair

ABOUT = About(
    name="SafeMERGE",
    stage="after fine-tuning",
    needs="the aligned model, one from before the alignment, an adapter trained on safety rows",
    paper="2503.17239",
    agreement="exact with the release (`form: released`) and with the paper's formula",
    config="defence/safe_merge.yaml",
)


# Below it, the norm of what alignment changed counts as zero.
_NOTHING = 1e-9
# LoRA factors: A (r, in) and B (out, r), and the scaling of B A.
Factors = tuple[Tensor, Tensor, float]


def safety_cosine(a: Tensor, b: Tensor, aligned: Tensor, base: Tensor) -> float:
    """Return the rounded cosine of ``C B A`` and ``B A``; 0 where alignment changed nothing."""
    if float((wide(aligned) - wide(base)).norm()) < _NOTHING:
        return 0.0
    return rounded_cosine(aligned_part(b, aligned, base) @ wide(a), wide(b) @ wide(a))


def merge_changes(
    tuned: Factors, safe: Factors, weights: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Return factors of ``w_f s_f B_f A_f + w_g s_g B_g A_g``, the paper's formula.

    Args:
        tuned: A (r, in), B (out, r) and scaling of the fine-tuned adapter.
        safe: Those of the safety adapter; its rank may differ.
        weights: ``(w_f, w_g)``.

    Returns:
        A (r_f + r_g, in) and B (out, r_f + r_g), for a scaling of 1.
    """
    (a_f, b_f, s_f), (a_g, b_g, s_g) = tuned, safe
    a = torch.cat([wide(a_f), wide(a_g)])
    return a, torch.cat([weights[0] * s_f * wide(b_f), weights[1] * s_g * wide(b_g)], dim=1)


def merge_factors(
    tuned: Factors,
    safe: Factors,
    weights: tuple[float, float],
    keep: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    density: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Return ``sqrt(w_f s_f) A_f + sqrt(w_g s_g) A_g`` and the same of B, as the release does.

    Their product holds the cross terms ``sqrt(w_f s_f w_g s_g) (B_f A_g + B_g A_f)``.

    Args:
        tuned: A (r, in), B (out, r) and scaling of the fine-tuned adapter.
        safe: Those of the safety adapter, of the same rank.
        weights: ``(w_f, w_g)``, neither negative.
        keep: For the release's ``dare_linear``: which entries of A_f, A_g, B_f, B_g stay.
        density: The share of entries that was meant to stay; the kept ones are divided by it.

    Returns:
        A (r, in) and B (out, r), for a scaling of 1.
    """
    (a_f, b_f, s_f), (a_g, b_g, s_g) = tuned, safe
    parts = [wide(each) for each in (a_f, a_g, b_f, b_g)]
    if keep is not None:
        parts = [each * mask / density for each, mask in zip(parts, keep, strict=True)]
    w_f, w_g = math.sqrt(weights[0] * s_f), math.sqrt(weights[1] * s_g)
    return w_f * parts[0] + w_g * parts[1], w_f * parts[2] + w_g * parts[3]


class SafeMerge(PairEdit):
    """SafeMERGE (arXiv 2503.17239): merge an adapter with a safety adapter where it is unsafe.

    A module is merged where the cosine of SafeLoRA is below a threshold, or where alignment has
    changed nothing.

    Args:
        model_name_or_path: The fine-tuned LoRA adapter.
        safe_adapter: An adapter of the same base, modules and rank, trained on safety rows.
        base: The model before alignment.
        aligned: The model before fine-tuning; by default the adapter's base.
        threshold: Modules with a smaller cosine are merged.
        weights: Of the fine-tuned and the safety adapter in a merged module.
        form: ``paper`` adds the two changes, so the rank doubles; ``released`` adds the factors,
            which leaves cross terms.
        density: With ``released``: keep so many entries of each factor, drawn at random, and divide
            by it (the release's ``dare_linear``), in all modules.
        seed: Of that draw.
    """

    second = "safe"

    def __init__(
        self,
        model_name_or_path: str,
        safe_adapter: str | None = None,
        base: str | None = None,
        aligned: str | None = None,
        threshold: float = 0.35,
        weights: tuple[float, float] = (0.8, 0.2),
        form: Literal["paper", "released"] = "paper",
        density: float | None = None,
        seed: int = 0,
    ) -> None:
        if min(weights) < 0:
            raise OneShotError(f"model.weights: must not be negative, not {list(weights)}.")
        if density is not None and (form != "released" or not 0 < density <= 1):
            raise OneShotError("model.density: must be above 0, at most 1, with form released.")
        self.model_name_or_path, self.aligned = model_name_or_path, aligned
        self.safe_adapter, self.base = given("safe_adapter", safe_adapter), given("base", base)
        self.threshold = threshold
        self.weights, self.form, self.density, self.seed = list(weights), form, density, seed
        self._generator = torch.Generator().manual_seed(seed)

    def sources(self) -> dict[str, str]:
        """Return both adapters, the base and, if it is given, the aligned model."""
        known = {"tuned": self.model_name_or_path, "safe": self.safe_adapter, "base": self.base}
        return known if self.aligned is None else known | {"aligned": self.aligned}

    def folders(self) -> dict[str, Any]:
        """Return the folder of each model.

        Raises:
            OneShotError: also for a whole model, of which the pairs are not known.
        """
        if not is_adapter(self.tuned):
            raise OneShotError(
                f"{self.tuned}: is no LoRA adapter, and SafeMERGE merges two; give the adapter."
            )
        return super().folders()

    def edit_pair(
        self, module: str, pair: LoraPair, weights: Mapping[str, Tensor], second: LoraPair | None
    ) -> tuple[Matrices, float] | None:
        """Return the merged pair where the cosine is below the threshold."""
        assert second is not None
        if second.rank != pair.rank:
            raise OneShotError(
                f"{self.safe_adapter}: {module} has rank {second.rank} there and {pair.rank} in "
                "the tuned adapter; train the safety adapter with the same r."
            )
        cosine = safety_cosine(pair.a, pair.b, weights["aligned"], weights["base"])
        below = cosine < self.threshold
        self.note(cosine=cosine, **({"decision": "merged"} if below else {}))
        shares = (self.weights[0], self.weights[1]) if below else (1.0, 0.0)
        tuned, safe = ((p.a, p.b, p.scaling) for p in (pair, second))
        if self.density is not None:
            parts = (pair.a, second.a, pair.b, second.b)
            keep = tuple(self._draw(part) for part in parts)
            return merge_factors(tuned, safe, shares, keep, self.density), 1.0  # type: ignore[arg-type]
        if not below:
            return None
        merge = merge_changes if self.form == "paper" else merge_factors
        return merge(tuned, safe, shares), 1.0

    def _draw(self, like: Tensor) -> Tensor:
        assert self.density is not None
        return torch.rand(like.shape, generator=self._generator) < self.density
