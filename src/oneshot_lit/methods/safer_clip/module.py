"""`SaferClipModule`: redirect what is unsafe in a CLIP model (SafeR-CLIP)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.safer_clip.clip_module import ClipModule
from oneshot_lit.methods.safer_clip.losses import (
    TermWeights,
    curriculum_levels,
    loss_terms,
    nearest_safe,
    total_loss,
)


class SaferClipModule(ClipModule):
    """Redirect unsafe images and texts to the nearest safe ones (SafeR-CLIP, arXiv 2511.16743).

    Each unsafe text goes to the safe text that the frozen encoder finds nearest among all of the
    training set, and to its image; safe rows stay where they are. The frozen encoders are this
    model without its adapter; what they say of each row is computed once, before training.

    Args:
        weights: How much each term of the loss counts.
        redirect: ``nearest``, or ``partner`` for the safe row of the same quadruple (a control).
        peft: The adapter of both encoders; rank 16 on all matrices of attention by default.
    """

    def __init__(
        self,
        *args: Any,
        weights: TermWeights | None = None,
        redirect: Literal["nearest", "partner"] = "nearest",
        peft: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        modules = ["q_proj", "k_proj", "v_proj", "out_proj"]
        given = peft or {"r": 16, "lora_alpha": 16, "target_modules": modules}
        super().__init__(*args, peft=given, **kwargs)  # type: ignore[misc]
        if self.model_config is not None:
            raise OneShotError("model.model_config: SafeR-CLIP needs a trained CLIP model.")
        self.weights, self.redirect = weights or TermWeights(), redirect
        self._frozen_rows: dict[str, Tensor] = {}
        self._near = torch.zeros(0, dtype=torch.int64)
        self._levels: list[int] = []

    def on_fit_start(self) -> None:
        """Embed all rows with the frozen encoders; find where each unsafe row goes, and how far."""
        super().on_fit_start()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        with self.frozen():
            self._frozen_rows = self.embeddings_of(data.training)
        near, similarity = nearest_safe(
            self._frozen_rows["unsafe_text"], self._frozen_rows["safe_text"]
        )
        own = torch.arange(len(near), device=near.device)
        self._near = near if self.redirect == "nearest" else own
        if data.curriculum:
            data.levels = [level for level in curriculum_levels(similarity) if level]
        self._levels = [len(level) for level in data.levels]

    def loss_terms(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the five terms of SafeR-CLIP."""
        rows = batch["index"]
        near = self._near[rows]
        return loss_terms(
            self.embeddings(batch),
            {item: values[rows] for item, values in self._frozen_rows.items()},
            {kind: self._frozen_rows[f"safe_{kind}"][near] for kind in ("image", "text")},
        )

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        return total_loss(terms, self.weights)

    def scores_facts(self) -> dict[str, Any]:
        """Return the settings, and the sizes of the levels."""
        return {
            **super().scores_facts(),
            "redirect": self.redirect,
            "weights": vars(self.weights),
            "levels": self._levels,
        }
