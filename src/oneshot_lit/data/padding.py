"""Encoded rows of different lengths -> one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from oneshot_lit.data.chat import Encoded
from oneshot_lit.models.loss import IGNORE_INDEX


def pad_training(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Right-pad encoded rows to ``input_ids``, ``attention_mask``, ``labels`` of (rows, tokens).

    Labels are `IGNORE_INDEX` wherever the loss mask is False.
    """
    width = max(len(r.input_ids) for r in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    labels = torch.full((len(rows), width), IGNORE_INDEX, dtype=torch.long)
    for i, row in enumerate(rows):
        size = len(row.input_ids)
        ids = torch.tensor(row.input_ids, dtype=torch.long)
        input_ids[i, :size] = ids
        attention[i, :size] = 1
        labels[i, :size] = torch.where(torch.tensor(row.loss_mask), ids, IGNORE_INDEX)
    return {"input_ids": input_ids, "attention_mask": attention, "labels": labels}


def pad_generation(rows: Sequence[Encoded], pad_id: int) -> dict[str, Tensor]:
    """Left-pad encoded prompts to ``input_ids`` and ``attention_mask`` of (rows, tokens)."""
    width = max(len(r.input_ids) for r in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    attention = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        size = len(row.input_ids)
        input_ids[i, width - size :] = torch.tensor(row.input_ids, dtype=torch.long)
        attention[i, width - size :] = 1
    return {"input_ids": input_ids, "attention_mask": attention}
