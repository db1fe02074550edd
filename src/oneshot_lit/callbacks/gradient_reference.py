"""What measured gradients are compared with: those of another batch at the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from oneshot_lit.callbacks.shared_spectra import Compare
from oneshot_lit.conversation import require_trainable
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.models.linear_layers import batch_factors
from oneshot_lit.spectral import GradientComparison, compare_gradients
from oneshot_lit.strategies.exchange import Pair
from oneshot_lit.strategies.gradients import full_shape


class GradientReference:
    """Compare each gradient with that of a batch of other rows.

    Args:
        source: Its first rows are the batch, such as safety instances or harmful examples.
        rows: How many rows of the source.
        k: Leading singular vectors of the overlap.
    """

    def __init__(self, source: ConversationSource, rows: int = 8, k: int = 20) -> None:
        self.source, self.rows, self.k = source, rows, k
        self._batch: dict[str, Tensor] = {}

    def start(self, trainer: Trainer, module: Any) -> None:
        """Load and encode the batch, so that mistakes show before training."""
        rows = [require_trainable(row) for row in self.source.load()[: self.rows]]
        length = trainer.datamodule.max_length  # type: ignore[attr-defined]
        encoded = [encode_conversation(module.tokenizer, row, max_length=length) for row in rows]
        self._batch = pad_training(encoded, module.tokenizer.pad_token_id)

    def measure(
        self, trainer: Trainer, module: Any, weights: Mapping[str, nn.Parameter]
    ) -> Compare:
        """Take the batch's gradients at the weights as they are; all processes take the same.

        Returns:
            Name and factors of a full gradient -> its comparison with the reference's; None for
            weights that the reference lacks and for embeddings, whose factors hold the rows of some
            tokens only.
        """
        rows = {name: full_shape(weight)[0] for name, weight in weights.items()}
        embedding, head = module.model.get_input_embeddings(), module.model.get_output_embeddings()
        if head is None or head.weight is not embedding.weight:
            # Not compared, so not measured.
            weights = {n: p for n, p in weights.items() if p is not embedding.weight}
        batch = {key: value.to(module.device) for key, value in self._batch.items()}
        # Without dropout, whose draws would change the run that is watched.
        training = {m for m in module.modules() if m.training}
        module.eval()
        try:
            with trainer.precision_plugin.train_step_context():
                factors, _ = batch_factors(module, weights, batch)
        finally:
            for part in training:
                part.training = True

        def compare(name: str, gradient: Pair) -> GradientComparison | None:
            other = factors.get(name)
            if other is None or other[1].ndim != 2 or gradient[1].shape[-1] != rows[name]:
                return None
            return compare_gradients(*gradient, *other, self.k)

        return compare
