"""What measured gradients are compared with: another batch's gradients, or the last measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

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
    """Compare each gradient with a reference of the same weight.

    Args:
        of: A source, whose first rows are a batch, such as safety instances or harmful examples;
            its gradients are those at the weights of the current step. Or ``previous``: the
            gradients that were measured last.
        rows: How many rows of the source.
        k: Leading singular vectors of the overlap.
    """

    def __init__(
        self, of: ConversationSource | Literal["previous"], rows: int = 8, k: int = 20
    ) -> None:
        for name, value in {"reference_rows": rows, "overlap_k": k}.items():
            if value < 1:
                raise OneShotError(f"GradientRank: {name} must be >= 1, not {value}.")
        if isinstance(of, str) and of != "previous":
            raise OneShotError(
                f"GradientRank: reference must be a source or 'previous', not '{of}'."
            )
        self.of, self.rows, self.k = of, rows, k
        self._held: dict[str, Pair] = {}
        self._rows: dict[str, int] = {}
        self._batch: dict[str, Tensor] = {}

    def start(self, trainer: Trainer, module: Any) -> None:
        """Load and encode the batch, so that mistakes show before training."""
        self._held = {}
        if isinstance(self.of, str):
            return
        rows = [require_trainable(row) for row in self.of.load()[: self.rows]]
        data = trainer.datamodule  # type: ignore[attr-defined]
        encoded = [
            encode_conversation(module.tokenizer, row, max_length=data.max_length) for row in rows
        ]
        self._batch = pad_training(encoded, module.tokenizer.pad_token_id)

    def measure(self, trainer: Trainer, module: Any, weights: Mapping[str, nn.Parameter]) -> None:
        """Take the batch's gradients at the weights as they are; all processes take the same."""
        self._rows = {name: full_shape(weight)[0] for name, weight in weights.items()}
        if not self._batch:
            return
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
                self._held, _ = batch_factors(module, weights, batch)
        finally:
            for part in training:
                part.training = True

    def forget(self) -> None:
        """Free the factors of a batch, which are of no use to another step."""
        if self.of != "previous":
            self._held = {}

    def compare(self, factors: Mapping[str, Pair]) -> dict[str, GradientComparison]:
        """Compare the gradients of some weights with the reference.

        Args:
            factors: Name -> (right, left), (tokens, features), of full gradients.

        Returns:
            Name -> comparison, for the weights that the reference also has. Those of embeddings are
            left out: their factors hold the rows of some tokens only.
        """
        whole = {n: pair for n, pair in factors.items() if pair[1].shape[-1] == self._rows[n]}
        comparisons = {
            name: compare_gradients(*pair, *self._held[name], self.k)
            for name, pair in whole.items()
            if name in self._held and self._held[name][1].ndim == 2
        }
        if self.of == "previous":
            # The gradients just measured are the next reference.
            self._held = {n: p for n, p in self._held.items() if n not in factors} | whole
        return comparisons
