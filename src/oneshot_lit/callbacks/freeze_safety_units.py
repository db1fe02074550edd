"""`FreezeSafetyUnits`: fine-tune without touching the units that refusals rest on (SSAH)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.io.files import write_json_atomically
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.finetuning.safety_units import REDUNDANT, SAFETY, UTILITY, Over
from oneshot_lit.methods.finetuning.unit_search import (
    SHARES,
    UnitOptions,
    choose_units,
    masks_of,
    scores_on,
)

FILE = "frozen_units.json"


class FreezeSafetyUnits(Callback):
    """Freeze safety-critical units while all weights are trained (arXiv 2410.10862).

    Before training, the start model's hidden units are scored on refused and on other rows. Units
    for safety, and the complex units that matter most for it, do not move: neither gradients nor
    weight decay nor moments change the columns of ``down_proj`` and ``o_proj`` that they go
    through, nor the rows that make them. What the paper leaves open is an option here. Writes
    ``frozen_units.json`` to the run's folder.

    Args:
        safety: Requests that are refused, with the refusals.
        utility: Other conversations that must keep working.
        redundant_share: Share of units set aside first, with the smallest sum of both scores.
        safety_share: Share of units for safety.
        utility_share: Share of units for usefulness.
        complex_share: How many complex units are frozen, too, as a share of all units; 1 takes all.
        scope: Rank the units of one kind over all layers together (``global``) or in each layer.
        over: The variance of a unit is that over all ``tokens``, or over ``sequences``, position by
            position.
        scaled: Make both sets of rows weigh the same.
        layers: Freeze in the first layers only, as the paper does for Llama-3 (12).
    """

    def __init__(
        self,
        safety: ConversationSource,
        utility: ConversationSource,
        redundant_share: float = SHARES[REDUNDANT],
        safety_share: float = SHARES[SAFETY],
        utility_share: float = SHARES[UTILITY],
        complex_share: float = 0.06,
        scope: Literal["global", "layer"] = "global",
        over: Over = "tokens",
        scaled: bool = True,
        layers: int | None = None,
    ) -> None:
        super().__init__()
        shares = {REDUNDANT: redundant_share, SAFETY: safety_share, UTILITY: utility_share}
        if min(*shares.values(), complex_share) < 0 or sum(shares.values()) > 1:
            raise OneShotError(
                "FreezeSafetyUnits: shares must not be negative, nor add up to more than 1."
            )
        self.sources = {"safety": safety, "utility": utility}
        self.options = UnitOptions(shares, complex_share, scope, over, scaled)
        self.layers = layers

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the units in the start model, and hand their masks to the module."""
        module: Any = pl_module
        if module.peft is not None:
            raise OneShotError(
                "model.peft: an adapter changes every unit, and FreezeSafetyUnits freezes weights; "
                "drop one of the two."
            )
        masks = self._masks(trainer, module) if trainer.is_global_zero else None
        module.frozen_by_callbacks = trainer.strategy.broadcast(masks)

    def _masks(self, trainer: Trainer, module: Any) -> dict[str, Tensor]:
        rows = {name: source.load() for name, source in self.sources.items()}
        for name, own in rows.items():
            if not own or any(row.response_text is None for row in own):
                raise OneShotError(f"FreezeSafetyUnits.{name}: needs rows with answers.")
        # A copy of its own: that of the training may be sharded.
        start = LanguageModelModule(str(module.model_name_or_path), dtype="float32")
        start.configure_model()
        start.to(module.device).eval()
        scores = [scores_on(start, own, self.options.over) for own in rows.values()]
        frozen, groups = choose_units(scores[0], scores[1], self.options)
        shapes = {n: p.shape for n, p in start.model.named_parameters()}
        config = start.model.config
        head = getattr(config, "head_dim", None)
        head = head or config.hidden_size // config.num_attention_heads
        masks = masks_of(frozen, shapes, head, self.layers)
        total = sum(shape.numel() for shape in shapes.values())
        share = sum(int(mask.sum()) for mask in masks.values()) / total
        kept = sum(len(units) for units in frozen.values())
        rank_zero_info(
            f"{kept} of {sum(groups.values())} units, {share:.1%} of the weights, frozen"
        )
        content = {"groups": groups, "frozen": frozen, "share_of_weights": share}
        write_json_atomically(Path(trainer.default_root_dir) / FILE, content)
        return {f"model.{name}": mask for name, mask in masks.items()}
