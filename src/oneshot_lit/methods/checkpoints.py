"""What a module saves in checkpoints, and restores from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.datasets import rows_digest
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.gradient_hooks import GradientHooks
from oneshot_lit.strategies.exchange import everyones
from oneshot_lit.strategies.folders import own_state
from oneshot_lit.strategies.frozen_entries import FrozenEntries
from oneshot_lit.strategies.resumed_loops import (
    accumulated_batches,
    correct_counts,
    own_random_state,
    restore_random_state,
)
from oneshot_lit.strategies.weights import own_weights, set_own_weights


class RunState(GradientHooks):
    """The part of `LanguageModelModule` that makes a resumed run go on as if never interrupted.

    It also remembers the weights that the run started from.
    """

    peft: dict[str, Any] | None
    decoding: Any
    model: Any
    # Set it in a subclass that needs these weights.
    keeps_start_weights = False
    _start_weights: dict[str, Tensor] | None = None

    @property
    def start_weights(self) -> dict[str, Tensor]:
        """The trained weights that the run started from, by the names of `named_parameters`.

        They are kept from `on_train_start` on, on the CPU and in checkpoints, so a resumed run has
        the same. If the strategy shards the model, each process holds its own shards; use
        `at_start` then. With an adapter they are the adapter's weights.

        Raises:
            RuntimeError: if the class does not set `keeps_start_weights`, or before the start.
        """
        if self._start_weights is None:
            raise RuntimeError(
                f"{type(self).__name__}.start_weights: set keeps_start_weights = True in the "
                "class, and ask for them from on_train_start on."
            )
        return self._start_weights

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """Give the model the weights that the run started from while the block runs.

        For the outputs of a reference model, and therefore without dropout. Works under any
        strategy: call it in all processes, with gradients off, before the forward pass that gets
        the gradient.
        """
        now, training = own_weights(self), self.training
        set_own_weights(self, self.start_weights)
        self.eval()
        try:
            yield
        finally:
            self.train(training)
            set_own_weights(self, now)

    def further_rows(self) -> dict[str, list[Conversation]]:
        """Return rows besides the data module's that the output depends on, by their key.

        Override it in a module with its own source, so that a run is not resumed on other rows.
        """
        return {}

    def contents(self) -> dict[str, list[Any]]:
        """Return the number and a hash of all rows that the output depends on, by their key."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rows = {key: [len(each), rows_digest(each)] for key, each in self.further_rows().items()}
        return (data.contents() if hasattr(data, "contents") else {}) | rows

    def before_export(self) -> None:
        """Set the weights that are to be exported; called by the export after `fit`."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the random state, and only the adapter's weights when only an adapter is trained."""
        # Rows of different lengths take different numbers of draws, so the processes differ.
        own = own_random_state(self.trainer.strategy.root_device)
        checkpoint["random_states"] = everyones(self.trainer, own)
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
