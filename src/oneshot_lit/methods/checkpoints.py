"""What a module saves in checkpoints, and restores from them."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.trainer.states import TrainerFn

from oneshot_lit.conversation import Conversation
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.gradient_hooks import GradientHooks
from oneshot_lit.methods.start_weights import StartWeights
from oneshot_lit.strategies.folders import own_state
from oneshot_lit.strategies.frozen_entries import FrozenEntries
from oneshot_lit.strategies.random_state import random_states, restore_random_state
from oneshot_lit.strategies.resumed_loops import accumulated_batches, correct_counts
from oneshot_lit.strategies.weights import own_weights


class RunState(StartWeights, GradientHooks):
    """The part of `LanguageModelModule` that makes a resumed run go on as if never interrupted."""

    peft: dict[str, Any] | None
    decoding: Any
    model: Any

    def further_rows(self) -> dict[str, list[Conversation]]:
        """Return rows besides the data module's that the output depends on, by their key.

        Override it in a module with its own source, so that a run is not resumed on other rows.
        """
        return {}

    def before_export(self) -> None:
        """Set the weights that are to be exported; called by the export after `fit`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state, and only the adapter's weights when only an adapter is trained."""
        checkpoint["random_states"] = random_states(self.trainer)
        if self._start_weights is not None:
            own_state(checkpoint)["start_weights"] = self._start_weights
        if self.peft is not None:
            trained = {name for name, p in self.named_parameters() if p.requires_grad}
            weights = checkpoint["state_dict"]
            checkpoint["state_dict"] = {k: v for k, v in weights.items() if k in trained}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Load weights; those of another model raise a one-line error."""
        try:
            return super().load_state_dict(state_dict, strict=strict, assign=assign)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise OneShotError(
                f"the checkpoint does not fit this model: {' '.join(lines[1:2] or lines).strip()}"
            ) from error

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the random state; refuse a checkpoint without this run's trained weights."""
        if self.decoding.backend == "vllm":
            raise OneShotError(
                "--ckpt_path: vLLM reads no checkpoint; give the written model's folder in "
                "model.model_name_or_path, or choose model.decoding.backend transformers."
            )
        self._random_states = checkpoint.get("random_states")
        if self.trainer.state.fn == TrainerFn.FITTING and "loops" in checkpoint:
            correct_counts(self.trainer, checkpoint["loops"]["fit_loop"])
        if self.keeps_start_weights and self.trainer.state.fn == "fit":
            self._start_weights = own_state(checkpoint).get("start_weights")
            if self._start_weights is None:
                raise OneShotError(
                    "--ckpt_path: the checkpoint does not hold the weights that its run started "
                    "from, which the model compares with; start anew without --ckpt_path."
                )
        if self.peft is not None and self.model is not None:
            trained = [name for name, p in self.named_parameters() if p.requires_grad]
            # The strategy reads sharded checkpoints, and raises if something is missing.
            weights = checkpoint.get("state_dict")
            missing = [name for name in trained if weights is not None and name not in weights]
            if missing:
                raise OneShotError(f"the checkpoint lacks the adapter weight {missing[0]}.")

    def on_train_start(self) -> None:
        """Remember the start, or continue where the interrupted run stopped."""
        # Lightning's own scheduler sets this only at the start of an epoch.
        self.trainer.accumulate_grad_batches = accumulated_batches(self.trainer, self.current_epoch)
        if self.keeps_start_weights and self._start_weights is None:
            self._start_weights = own_weights(self)
        if masks := self.frozen_entries():
            self._frozen = FrozenEntries(self, masks)
        states = getattr(self, "_random_states", None)
        if states is not None:
            restore_random_state(self.trainer, states)
            self._random_states = None
