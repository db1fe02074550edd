"""RESTA: add the direction from an unaligned model to the aligned one.

Source: Bhardwaj et al., "Language Models are Homer Simpson!" (arXiv 2402.11746).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.about import About
from oneshot_lit.methods.posttuning.alignment_matrix import add_scaled, difference, wide_copy
from oneshot_lit.methods.posttuning.weight_edit import WeightEdit, given

ABOUT = About(
    name="RESTA",
    stage="after fine-tuning",
    needs="the aligned model, and that model tuned on other harmful rows",
    paper="2402.11746",
    agreement="arithmetic exact; gamma, and where DARE acts, are inferred",
    config="defence/resta.yaml",
)


def resta(tuned: Tensor, aligned: Tensor, unaligned: Tensor, gamma: float) -> Tensor:
    """Return ``tuned + gamma (aligned - unaligned)``; all of one shape."""
    out = add_scaled(wide_copy(tuned, aligned, unaligned), aligned, gamma)
    return add_scaled(out, unaligned, -gamma)


def dare(delta: Tensor, drop: Tensor, rate: float) -> Tensor:
    """Return a difference without the entries in `drop`, the others divided by ``1 - rate``.

    Args:
        delta: Any shape.
        drop: Which entries go: True or 1, same shape.
        rate: The share of entries that was meant to go, below 1.
    """
    return delta.masked_fill(drop.bool(), 0.0).div_(1 - rate)


def drop_mask(shape: torch.Size, rate: float, generator: torch.Generator) -> Tensor:
    """Draw which entries go: a tensor of bools."""
    return torch.rand(shape, generator=generator) < rate


class Resta(WeightEdit):
    """RESTA (arXiv 2402.11746): add the direction from an unaligned model to the aligned one.

    All weights, those of embeddings and norms too, become ``tuned + gamma (aligned - unaligned)``.

    Args:
        model_name_or_path: The fine-tuned model, adapters merged.
        aligned: The model before fine-tuning.
        base: The unaligned model: the aligned one after a short fine-tuning on harmful rows, other
            ones than those of the attack. A checkpoint from before the alignment is no good here.
        gamma: How far. The paper's value is not known.
        dare_on: Drop entries at random (DARE) of what fine-tuning changed, or of the direction;
            which of the two the paper means is not known.
        drop: The share of entries that is dropped.
        seed: Of the draw, one tensor after the other.
    """

    def __init__(
        self,
        model_name_or_path: str,
        aligned: str | None = None,
        base: str | None = None,
        gamma: float = 0.5,
        dare_on: Literal["finetune", "safety"] | None = None,
        drop: float = 0.3,
        seed: int = 0,
    ) -> None:
        if not 0 <= drop < 1:
            raise OneShotError(f"model.drop: must be at least 0 and below 1, not {drop}.")
        self.model_name_or_path = model_name_or_path
        self.aligned = given("aligned", aligned)
        self.base = given("base", base, "an unaligned model (--base)")
        self.gamma, self.dare_on, self.drop, self.seed = gamma, dare_on, drop, seed
        self._generator = torch.Generator().manual_seed(seed)

    def sources(self) -> dict[str, str]:
        """Return the three models."""
        return {
            "tuned": self.model_name_or_path,
            "aligned": self.aligned,
            "base": self.base,
        }

    def edit(self, name: str, weights: Mapping[str, Tensor]) -> Tensor:
        """Return the tensor with the direction added."""
        tuned, aligned, base = (weights[model] for model in ("tuned", "aligned", "base"))
        if not tuned.is_floating_point():
            return tuned
        if self.dare_on is None:
            return resta(tuned, aligned, base, self.gamma)
        gone = drop_mask(tuned.shape, self.drop, self._generator)
        if self.dare_on == "finetune":
            kept = add_scaled(dare(difference(tuned, aligned), gone, self.drop), aligned)
            return resta(kept, aligned, base, self.gamma)
        direction = dare(difference(aligned, base), gone, self.drop)
        return add_scaled(wide_copy(tuned, aligned, base), direction, self.gamma)
