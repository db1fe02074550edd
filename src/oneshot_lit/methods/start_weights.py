"""The weights that a run started from, also after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch import LightningModule
from torch import Tensor

from oneshot_lit.strategies.weights import own_weights, set_own_weights


class StartWeights(LightningModule):
    """The part of `LanguageModelModule` that remembers the weights at the start of the run."""

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
