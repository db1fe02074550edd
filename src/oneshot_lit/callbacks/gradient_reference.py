"""What measured gradients are compared with: those of another batch at the same weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor, nn

from oneshot_lit.conversation import require_trainable
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.models.linear_layers import batch_factors
from oneshot_lit.spectral import GradientComparison, compare_gradients
from oneshot_lit.strategies.gradients import full_shape

Pair = tuple[Tensor, Tensor]


class GradientReference:
    """Compare each gradient with that of a batch of other rows.

    Args:
        source: Its first rows are the batch, such as safety instances or harmful examples.
        rows: How many rows of the source.
        k: Leading singular vectors of the overlap.
    """

    def __init__(self, source: ConversationSource, rows: int = 8, k: int = 20) -> None:
        for name, value in {"reference_rows": rows, "overlap_k": k}.items():
            if value < 1:
                raise OneShotError(f"GradientRank: {name} must be >= 1, not {value}.")
        self.source, self.rows, self.k = source, rows, k
        self._factors: dict[str, Pair] = {}
        self._out_features: dict[str, int] = {}
        self._batch: dict[str, Tensor] = {}

    def start(self, trainer: Trainer, module: Any) -> None:
        """Load and encode the batch, so that mistakes show before training."""
        rows = [require_trainable(row) for row in self.source.load()[: self.rows]]
        length = trainer.datamodule.max_length  # type: ignore[attr-defined]
        encoded = [encode_conversation(module.tokenizer, row, max_length=length) for row in rows]
        self._batch = pad_training(encoded, module.tokenizer.pad_token_id)

    def measure(self, trainer: Trainer, module: Any, weights: Mapping[str, nn.Parameter]) -> None:
        """Take the batch's gradients at the weights as they are; all processes take the same."""
        self._out_features = {name: full_shape(weight)[0] for name, weight in weights.items()}
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
                self._factors, _ = batch_factors(module, weights, batch)
        finally:
            for part in training:
                part.training = True

    def forget(self) -> None:
        """Free the factors of the batch, which are of no use to another step."""
        self._factors = {}

    def compare(self, name: str, factors: Pair) -> GradientComparison | None:
        """Compare the gradient of a weight with the reference's.

        Args:
            name: The weight.
            factors: (right, left), (tokens, features), of its full gradient.

        Returns:
            The comparison; None for weights that the reference lacks and for embeddings, whose
            factors hold the rows of some tokens only.
        """
        other = self._factors.get(name)
        if other is None or other[1].ndim != 2:
            return None
        if factors[1].shape[-1] != self._out_features[name]:
            return None
        return compare_gradients(*factors, *other, self.k)
