"""`Merge`: the fine-tuned model merged with the aligned one, by one of five rules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.posttuning.alignment_matrix import add_scaled, difference, wide_copy
from oneshot_lit.methods.posttuning.merging import (
    Rescale,
    drop_and_rescale,
    linear,
    model_stock,
    slerp,
    ties,
)
from oneshot_lit.methods.posttuning.weight_edit import WeightEdit, given

ABOUT = [
    About(
        name="merging: linear",
        stage="after fine-tuning",
        needs="the aligned model",
        paper="2412.19512",
        agreement="exact with mergekit",
        config="defence/linear.yaml",
    ),
    About(
        name="merging: SLERP",
        stage="after fine-tuning",
        needs="the aligned model",
        paper="2412.19512",
        agreement="exact with mergekit",
        config="defence/slerp.yaml",
    ),
    About(
        name="merging: DARE",
        stage="after fine-tuning",
        needs="the aligned model",
        paper="2412.19512",
        agreement="exact with mergekit; the paper's density is not known",
        config="defence/dare_linear.yaml",
    ),
    About(
        name="merging: TIES",
        stage="after fine-tuning",
        needs="the aligned model",
        paper="2412.19512",
        agreement="exact with mergekit; the paper's density is not known",
        config="defence/ties.yaml",
    ),
    About(
        name="merging: Model Stock",
        stage="after fine-tuning",
        needs="the aligned model, further fine-tuned models",
        paper="2412.19512",
        agreement="exact with mergekit",
        config="defence/model_stock.yaml",
    ),
]


Rule = Literal["linear", "slerp", "dare_linear", "ties", "model_stock"]


class Merge(WeightEdit):
    """Merge the fine-tuned model with the aligned one (arXiv 2412.19512), all tensors alike.

    The arithmetic is that of mergekit, in float32; mergekit itself computes in the dtype of the
    files. Models with another vocabulary are refused.

    Args:
        model_name_or_path: The fine-tuned model, adapters merged.
        aligned: The model before fine-tuning.
        rule: ``linear``: the weighted mean; ``slerp``: along the arc; ``dare_linear``: the weighted
            mean with entries of the difference dropped at random; ``ties``: only the largest
            entries of each difference, where the models agree on the sign; ``model_stock``: as far
            towards the mean of several fine-tuned models as their differences agree.
        weight: Of the fine-tuned model, from 0 to 1; ``model_stock`` has no use for it.
        others: Further fine-tuned models, for ``ties`` and ``model_stock``.
        density: The share of entries that stays, for ``dare_linear`` and ``ties``. The paper's is
            not known.
        rescale: For ``dare_linear``: how the entries that stay make up for the others.
        normalize: For ``ties``: divide by the weights that agree; with one model the weight then
            has no effect.
        filter_wise: For ``model_stock``: row by row.
        seed: Of the draw, one tensor after the other.
    """

    def __init__(
        self,
        model_name_or_path: str,
        aligned: str | None = None,
        rule: Rule = "linear",
        weight: float = 0.5,
        others: list[str] | None = None,
        density: float = 0.5,
        rescale: Rescale = "l1",
        normalize: bool = False,
        filter_wise: bool = False,
        seed: int = 0,
    ) -> None:
        if not 0 < density <= 1:
            raise OneShotError(f"model.density: must be above 0 and at most 1, not {density}.")
        if rule == "model_stock" and not others:
            raise OneShotError(
                "model.others: Model Stock needs at least two fine-tuned models; give the others."
            )
        if others and rule not in ("ties", "model_stock"):
            raise OneShotError(f"model.others: {rule} merges one fine-tuned model; drop them.")
        if rule == "ties" and normalize and not others:
            raise OneShotError(
                "model.normalize: with one fine-tuned model the weight would have no effect; drop "
                "it."
            )
        self.model_name_or_path, self.rule = model_name_or_path, rule
        self.aligned = given("aligned", aligned)
        self.weight, self.others, self.density = weight, list(others or ()), density
        self.rescale, self.normalize, self.filter_wise = rescale, normalize, filter_wise
        self.seed = seed
        self._generator = torch.Generator().manual_seed(seed)

    def sources(self) -> dict[str, str]:
        """Return the models: ``tuned``, ``aligned``, and ``other1``, ``other2`` ..."""
        more = {f"other{n}": source for n, source in enumerate(self.others, start=1)}
        return {"tuned": self.model_name_or_path, "aligned": self.aligned, **more}

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the merged tensor."""
        own, aligned = weights["tuned"], weights["aligned"]
        if not own.is_floating_point():
            return own
        tuned = [own, *(weights[f"other{n}"] for n in range(1, len(self.others) + 1))]
        if self.rule == "linear":
            return linear(aligned, own, self.weight)
        if self.rule == "slerp":
            merged, straight = slerp(aligned, own, self.weight)
            self.note(decision="line" if straight else "arc")
            return merged
        if self.rule == "dare_linear":
            delta = difference(own, aligned)
            if self.density < 1:
                keep = torch.rand(own.shape, generator=self._generator) < self.density
                delta = drop_and_rescale(delta, keep, self.density, self.rescale)
            return add_scaled(wide_copy(aligned, own), delta, self.weight)
        if self.rule == "ties":
            weight = [self.weight] * len(tuned)
            return ties(aligned, tuned, weight, self.density, self.normalize)
        merged, share = model_stock(aligned, tuned, self.filter_wise)
        self.note(share_of_mean=share)
        return merged
