"""`ExponentialMovingAverage`: export the running average of the weights of a fine-tuning."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.finetuning.ema import update_average
from oneshot_lit.strategies.folders import own_state
from oneshot_lit.strategies.weights import own_weights, set_own_weights, trained_parts

# In a checkpoint, the average of each process's own weights.
AVERAGE = "weight_average"


class Average:
    """What Lightning's callback updates: the average of this process's part of the weights.

    Args:
        weights: Name of a trained parameter -> its average, from `own_weights`.
        eta: See `update_average`.
    """

    def __init__(self, weights: dict[str, Tensor], eta: float) -> None:
        self.weights, self.eta = weights, eta

    def update_parameters(self, module: nn.Module) -> None:
        """Take the weights after a step into the average."""
        update_average(self.weights, trained_parts(module), self.eta)


class ExponentialMovingAverage(WeightAveraging):
    """Keep ``average <- eta * average + (1 - eta) * weights``, and export it (arXiv 2508.12531).

    Lightning's `WeightAveraging` with another memory: the average starts from the weights that the
    run starts from, not from those after the first step; it holds the trained weights alone, in
    float32, sharded where the strategy shards them; and it is saved for an exact resume. Updated
    once an optimiser step, also under accumulation. Validation and the exported model have the
    average. With an adapter, its matrices are averaged, not their product.

    Args:
        eta: Share of the average that a step keeps; half of the start is left after
            ``ln 0.5 / ln eta`` steps, 69 at 0.99.
        feedback_every: Update the average only once in so many steps, and go on from it then, as
            the Lookahead optimiser does; the optimiser keeps its state. Without it the training
            does not see the average. 1 only multiplies the learning rate by 1 - eta.
        start_step: How many first steps the average leaves out; it is the start until then.
        device: Where the average is kept; that of the weights if not given.
    """

    def __init__(
        self,
        eta: float = 0.99,
        feedback_every: int | None = None,
        start_step: int = 0,
        device: str | None = None,
    ) -> None:
        super().__init__(device=device)
        if not 0 <= eta < 1:
            raise OneShotError(f"ExponentialMovingAverage.eta must be in [0, 1), not {eta}.")
        if start_step < 0:
            raise OneShotError(
                f"ExponentialMovingAverage.start_step must be at least 0, not {start_step}."
            )
        if feedback_every is not None and feedback_every < 1:
            raise OneShotError(
                "ExponentialMovingAverage.feedback_every must be at least 1, not "
                f"{feedback_every}; leave it out for no feedback."
            )
        self.eta, self.feedback_every, self.start_step = eta, feedback_every, start_step
        # Lightning's own type copies the whole module, which a sharded one does not survive.
        self._average_model: Any = None
        self._kept: dict[str, Tensor] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run; the weights are not there yet."""
        if stage == "fit":
            self._average_model, self._kept = None, None
            self._latest_update_step = 0
            if self.feedback_every == 1:
                rank_zero_warn(
                    "ExponentialMovingAverage.feedback_every=1 is training with the learning rate "
                    f"times {1 - self.eta:.4g}, and nothing else"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start from the weights that the run starts from, or go on with those of a checkpoint."""
        begun = self._average_model
        weights = own_weights(pl_module) if begun is None else begun.weights
        places = {name: part.device for name, part in trained_parts(pl_module)}
        kept = {
            # Some strategies train 16-bit weights.
            name: weight.to(
                self._device or places[name], torch.promote_types(weight.dtype, torch.float32)
            )
            for name, weight in weights.items()
        }
        self._average_model = Average(kept, self.eta)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Say whether the average takes in this step, counted from 0."""
        if step_idx is None or step_idx < self.start_step:
            return False
        return (step_idx + 1 - self.start_step) % (self.feedback_every or 1) == 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update the average after an optimiser step, and feed it back if that is asked for."""
        before = self._latest_update_step
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.feedback_every and self._latest_update_step != before:
            self._copy_average_to_current(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model the average."""
        super().on_train_end(trainer, pl_module)
        self._average_model = None

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do so, too, where a run is resumed that had ended already."""
        if self._average_model is not None:
            self.on_train_end(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the average beside the weights, each process its own part."""
        if self._average_model is not None:
            own_state(checkpoint)[AVERAGE] = self._average_model.weights

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take the average of the run that goes on.

        Raises:
            OneShotError: if the checkpoint is of a run without an average.
        """
        if trainer.state.fn != "fit":
            return
        weights = own_state(checkpoint).get(AVERAGE)
        if weights is None:
            raise OneShotError(
                "--ckpt_path: the checkpoint holds no average of weights, which "
                "ExponentialMovingAverage goes on with; start anew without --ckpt_path."
            )
        self._average_model = Average(weights, self.eta)

    def _swap_models(self, pl_module: LightningModule) -> None:
        """Give the model the average for a validation, then its own weights back."""
        # The average itself never goes through the model's dtype, which may have 16 bits.
        if self._kept is None:
            self._kept = own_weights(pl_module)
            self._copy_average_to_current(pl_module)
        else:
            set_own_weights(pl_module, self._kept)
            self._kept = None

    def _copy_average_to_current(self, pl_module: LightningModule) -> None:
        set_own_weights(pl_module, self._average_model.weights)
