"""Batches: right padding for training, left padding for generation."""

from __future__ import annotations

import random

import pytest
import torch

from oneshot_lit.data.chat import Encoded
from oneshot_lit.data.padding import pad_generation, pad_training
from oneshot_lit.models.loss import IGNORE_INDEX

PAD = 0


def random_rows(seed: int) -> list[Encoded]:
    rng = random.Random(seed)
    sizes = [rng.randint(1, 9) for _ in range(rng.randint(1, 6))]
    return [
        # The padding id also occurs as a real token: only the mask may tell them apart.
        Encoded([rng.randint(0, 5) for _ in range(n)], [rng.random() < 0.5 for _ in range(n)])
        for n in sizes
    ]


@pytest.mark.parametrize("seed", range(8))
def test_training_batch(seed: int) -> None:
    rows = random_rows(seed)
    batch = pad_training(rows, PAD)
    width = max(len(r.input_ids) for r in rows)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    for i, row in enumerate(rows):
        rest = width - len(row.input_ids)
        assert batch["input_ids"][i].tolist() == row.input_ids + [PAD] * rest
        assert batch["attention_mask"][i].tolist() == [1] * len(row.input_ids) + [0] * rest
        labels = [t if on else -100 for t, on in zip(row.input_ids, row.loss_mask, strict=True)]
        assert batch["labels"][i].tolist() == labels + [-100] * rest


@pytest.mark.parametrize("seed", range(8))
def test_generation_batch(seed: int) -> None:
    rows = random_rows(seed)
    batch = pad_generation(rows, PAD)
    width = max(len(r.input_ids) for r in rows)
    assert set(batch) == {"input_ids", "attention_mask"}
    for i, row in enumerate(rows):
        rest = width - len(row.input_ids)
        assert batch["input_ids"][i].tolist() == [PAD] * rest + row.input_ids
        assert batch["attention_mask"][i].tolist() == [0] * rest + [1] * len(row.input_ids)


def test_everything_is_int64_and_minus_100_is_ignored() -> None:
    for pad in (pad_training, pad_generation):
        assert {t.dtype for t in pad(random_rows(0), PAD).values()} == {torch.long}
    assert IGNORE_INDEX == -100
