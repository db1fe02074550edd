"""Harmless rows on which a repair must change little, and the drift on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from oneshot_lit.conversation import Conversation
from oneshot_lit.data.chat import encode_conversation
from oneshot_lit.data.padding import pad_training
from oneshot_lit.data.sources import ConversationSource
from oneshot_lit.errors import OneShotError
from oneshot_lit.methods.own_answers import with_own_answers
from oneshot_lit.models.loss import kl_divergences

Batch = dict[str, Tensor]
# Rows in a forward pass: with a vocabulary of 128,000 their logits are the largest tensor.
_ROWS_AT_ONCE = 8


class GuardRows:
    """The rows of the projection, and the disjoint ones on which the drift is measured.

    Args:
        source: Harmless conversations; a row without an answer gets the model's own.
        guard_rows: How many make the projection.
        drift_rows: How many measure the drift; they come first in the source.
    """

    def __init__(self, source: ConversationSource, guard_rows: int, drift_rows: int) -> None:
        self.source, self.guard_rows, self.drift_rows = source, guard_rows, drift_rows
        self._rows: list[Conversation] | None = None

    def encoded(self, module: Any, max_length: int) -> tuple[Batch | None, list[Batch]]:
        """Return one right-padded batch for the projection (None without rows), several for drift.

        Raises:
            OneShotError: if the source has too few different rows.
        """
        if self._rows is None:
            with module.model.disable_adapter():
                chosen = self._chosen()
                self._rows = with_own_answers(module, module.model, chosen, 2 * _ROWS_AT_ONCE)
        encoded = [
            encode_conversation(module.tokenizer, row, max_length=max_length) for row in self._rows
        ]
        pad = module.tokenizer.pad_token_id

        def batch(rows: list[Any]) -> Batch:
            return {k: v.to(module.device) for k, v in pad_training(rows, pad).items()}

        drift, guard = encoded[: self.drift_rows], encoded[self.drift_rows :]
        # Rows of similar length together need little padding.
        drift = sorted(drift, key=lambda row: len(row.input_ids))
        parts = [drift[i : i + _ROWS_AT_ONCE] for i in range(0, len(drift), _ROWS_AT_ONCE)]
        return batch(guard) if guard else None, [batch(part) for part in parts]

    def _chosen(self) -> list[Conversation]:
        wanted = self.guard_rows + self.drift_rows
        rows = list({row.prompt.messages: row for row in self.source.load()}.values())
        if len(rows) < wanted:
            raise OneShotError(
                f"model.guard: {self.source.describe()} has {len(rows)} different prompts, but "
                f"guard_rows={self.guard_rows} and drift_rows={self.drift_rows} need {wanted}; "
                "give more rows or lower one of them."
            )
        return rows[:wanted]


class Drift:
    """Mean KL divergence of the next-token distributions from those of the broken model.

    Taken over the answers' tokens of all rows: ``mean_t KL(p_broken(. | t) || p_now(. | t))``, in
    nats. The broken model is the module's with its adapter off.

    Args:
        module: The module, with a PEFT model.
        batches: Right-padded batches with labels.
    """

    def __init__(self, module: Any, batches: list[Batch]) -> None:
        self.module, self.batches = module, batches
        with module.model.disable_adapter():
            # In the model's own precision: nothing is lost, and no wider copy is kept.
            self.before = [self._logits(batch) for batch in batches]

    def __call__(self) -> float:
        """Return the drift of the present weights."""
        total, count = 0.0, 0
        for batch, before in zip(self.batches, self.before, strict=True):
            divergences = kl_divergences(before, self._logits(batch))
            total += float(divergences.double().sum())
            count += len(divergences)
        return total / count

    @torch.no_grad()
    def _logits(self, batch: Batch) -> Tensor:
        """Return the logits that predict an answer's token: (labelled tokens, vocabulary)."""
        return self.module.labelled_logits(batch)  # type: ignore[no-any-return]
