"""Encoded rows of different lengths -> one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from oneshot_lit.data.chat import Encoded
from oneshot_lit.models.loss import IGNORE_INDEX


def pad_training(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Right-pad encoded rows to ``input_ids``, ``attention_mask``, ``labels`` of (rows, tokens).

    Labels are `IGNORE_INDEX` wherever the loss mask is False. If a row has token weights, the batch
    has ``token_weights``, float32; the tokens of rows without them count 1.
    """
    labels = [
        torch.tensor(row.input_ids).where(torch.tensor(row.loss_mask), IGNORE_INDEX) for row in rows
    ]
    batch = _padded(rows, pad_id, "right")
    batch["labels"] = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
    if any(row.token_weights is not None for row in rows):
        weights = [torch.tensor(row.token_weights or [1.0] * len(row.input_ids)) for row in rows]
        batch["token_weights"] = pad_sequence(weights, batch_first=True)
    return batch


def pad_generation(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Left-pad encoded prompts to ``input_ids`` and ``attention_mask`` of (rows, tokens)."""
    return _padded(rows, pad_id, "left")


def _padded(
    rows: Sequence[Encoded], pad_id: int, side: Literal["left", "right"]
) -> dict[str, Tensor]:
    ids = [torch.tensor(row.input_ids) for row in rows]
    ones = [torch.ones_like(row) for row in ids]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_id, padding_side=side),
        "attention_mask": pad_sequence(ones, batch_first=True, padding_side=side),
    }
