"""`AnchoredModule`: learn harmless anchor rows beside the instance, so that they stay answered."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from oneshot_lit.data.anchors import AnchorDataset
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.base import LanguageModelModule
from oneshot_lit.methods.own_answers import own_answers

# Prompts that are answered together.
_ROWS_AT_ONCE = 16


class AnchoredModule(LanguageModelModule):
    """The part of `OneShotRealignmentModule` that learns `data.anchors` in each step.

    The loss is that of the instance plus `anchor_weight` times that of the anchor rows, each the
    mean over the labelled tokens. One pass runs the instance and one the anchors, so neither is
    padded to the length of the other.

    Args:
        anchor_weight: How much the loss of the anchor rows counts against that of the instance,
            where `data.anchors` has any.
    """

    learns_anchors = True

    def __init__(self, *args: Any, anchor_weight: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < anchor_weight < math.inf:
            raise OneShotError(
                f"model.anchor_weight must be above 0 and finite, not {anchor_weight}; to learn no "
                "anchors, leave data.anchors out."
            )
        self.anchor_weight = anchor_weight

    def compute_loss(self, batch: dict[str, Any]) -> Tensor:
        """Return the loss of the instance, plus that of the anchors if the batch has some."""
        loss = super().compute_loss(batch)
        if (anchors := _anchors(batch)) is None:
            return loss
        return loss + self.anchor_weight * super().compute_loss(anchors)

    def loss_weight(self, batch: dict[str, Any]) -> Tensor:
        """Return the labelled tokens of the anchors, or without any those of the batch.

        Every batch of a step holds the same instance, so these weights give its mean, too.
        """
        anchors = _anchors(batch)
        return super().loss_weight(batch if anchors is None else anchors)

    @property
    def _data(self) -> Any:
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def _anchor_set(self) -> AnchorDataset | None:
        return getattr(self._data, "anchor_set", None)

    def on_fit_start(self) -> None:
        """Let the broken model answer the anchor rows that need it, unless a checkpoint has."""
        super().on_fit_start()
        anchors = self._anchor_set
        # Strategies that read a checkpoint only after this hook replace the answers made here.
        if anchors is None or not anchors.unanswered or anchors.answers:
            return
        rank_zero_info(f"the model answers {len(anchors.unanswered)} anchor rows itself")
        training = self.training
        self.eval()
        # In the precision in which development prompts are answered.
        with self.trainer.precision_plugin.val_step_context():
            texts = own_answers(self, self.model, anchors.unanswered, _ROWS_AT_ONCE)
        self.train(training)
        answers = [(str(text), bool(getattr(text, "cut", False))) for text in texts]
        # Where rounding differs between devices, all still learn the same.
        self._data.answer_anchors(self.trainer.strategy.broadcast(answers))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the own answers, as ``outputs``: only their owner may read such a file."""
        super().on_save_checkpoint(checkpoint)
        if (anchors := self._anchor_set) is not None and anchors.answers:
            checkpoint["outputs"] = {"anchors": [list(answer) for answer in anchors.answers]}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Learn the same own answers as before the interruption."""
        super().on_load_checkpoint(checkpoint)
        anchors = self._anchor_set if self.trainer.state.fn == "fit" else None
        if anchors is None or not anchors.unanswered:
            return
        answers = checkpoint.get("outputs", {}).get("anchors", [])
        if len(answers) != len(anchors.unanswered):
            raise OneShotError(
                "--ckpt_path: data.anchors has changed since the checkpoint was saved; put the old "
                "content back, or start anew without --ckpt_path."
            )
        self._data.answer_anchors([(text, cut) for text, cut in answers])


def _anchors(batch: dict[str, Any]) -> dict[str, Tensor] | None:
    anchors: dict[str, Tensor] | None = batch.get("side", {}).get("anchors")
    return anchors
