"""The training loss, against a loop by hand in float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from oneshot_lit.models.loss import next_token_loss


def by_hand(logits: Any, labels: Any) -> float:
    """Walk over every labelled token; the token at t is predicted from the logits at t - 1."""
    losses = []
    for row, wanted in zip(logits.double().tolist(), labels.tolist(), strict=True):
        for position in range(1, len(wanted)):
            if wanted[position] == -100:
                continue
            scores = row[position - 1]
            top = max(scores)
            log_sum = top + math.log(sum(math.exp(s - top) for s in scores))
            losses.append(log_sum - scores[wanted[position]])
    return math.fsum(losses) / len(losses)


def random_batch(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows, tokens, vocabulary = 3, 11, 17
    logits = 6 * torch.randn(rows, tokens, vocabulary, generator=generator)
    labels = torch.randint(vocabulary, (rows, tokens), generator=generator)
    ignored = torch.rand(rows, tokens, generator=generator) < 0.6
    # One row may hold many more labelled tokens than another; each token counts the same.
    ignored[0, 2:] = True
    labels[ignored] = -100
    labels[0, 1] = 3
    return logits.to(dtype), labels


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-6),
        # The reference sees the rounded logits too; only arithmetic in 16 bits would differ.
        (torch.bfloat16, 1e-6),
        (torch.float16, 1e-6),
    ],
)
def test_loss(seed: int, dtype: torch.dtype, tolerance: float) -> None:
    logits, labels = random_batch(seed, dtype)
    loss = next_token_loss(logits, labels)
    assert loss.shape == ()
    assert float(loss) == pytest.approx(by_hand(logits, labels), rel=tolerance)


def test_first_label_and_last_logits_do_not_matter() -> None:
    logits, labels = random_batch(0, torch.float64)
    before = next_token_loss(logits, labels)
    labels[:, 0] = 5
    logits[:, -1] = 1e6
    assert next_token_loss(logits, labels) == before


def test_gradient_is_zero_where_nothing_is_learnt() -> None:
    logits, labels = random_batch(1, torch.float64)
    logits.requires_grad_()
    next_token_loss(logits, labels).backward()
    learnt = torch.zeros(labels.shape, dtype=torch.bool)
    learnt[:, :-1] = labels[:, 1:] != -100
    assert (logits.grad[~learnt] == 0).all()
    count = int(learnt.sum())
    wanted = torch.nn.functional.one_hot(labels[:, 1:].clamp_min(0), 17).double()
    expected = (logits.softmax(-1)[:, :-1] - wanted) / count
    torch.testing.assert_close(
        logits.grad[:, :-1][learnt[:, :-1]], expected[learnt[:, :-1]], rtol=1e-10, atol=1e-14
    )


def test_padding_changes_nothing() -> None:
    logits, labels = random_batch(2, torch.float64)
    wide = torch.cat([logits, torch.full((3, 4, 17), 9.0, dtype=torch.float64)], dim=1)
    padded = torch.cat([labels, torch.full((3, 4), -100)], dim=1)
    torch.testing.assert_close(next_token_loss(wide, padded), next_token_loss(logits, labels))


def test_nothing_to_learn_is_not_a_number() -> None:
    logits, labels = random_batch(0, torch.float32)
    # The module stops the run on a loss that is no number, rather than training on nothing.
    assert next_token_loss(logits, torch.full_like(labels, -100)).isnan()
